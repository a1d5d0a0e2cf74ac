"""The tasks behind ``train.py``, ``sample.py`` and ``evaluate.py``: compose, build, fit, sample, score, report."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from optcov.cli import report
from optcov.cli.build import Parts, build
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.fit import fit_mean, fit_variance, make_trainer
from optcov.cli.preflight import check
from optcov.metric import with_count
from optcov.training import SamplingStage, StageProgressBar
from optcov.training.store import first_process

log = logging.getLogger(__name__)

GROUPS = (
    "data",
    "model",
    "schedule",
    "var",
    "head",
    "sampler",
    "trajectory",
    "metric",
    "trainer",
    "optimizer",
    "logger",
    "callbacks",
    "experiment",
)


def train(cfg: DictConfig) -> dict[str, Any]:
    """The whole job: fit the mean, fit its variance, sample, score; each fit only if it was not done before.

    Args:
        cfg: composed from ``conf/config.yaml``.
    Returns:
        What ``results.json`` holds.
    Raises:
        ConfigError, CheckpointError: if the config can not be run, before anything is written.
    """
    _quiet()
    started = time.monotonic()
    config = check(cfg)
    parts = build(cfg)
    make_trainer(cfg)  # refuses what this machine can not do, before anything is fitted
    folder = Path(cfg.output_dir)
    done = _claim(folder, config)
    if done is not None:
        log.info("%s is finished already: nothing to do", folder)
        return done
    loggers = _loggers(cfg, config)
    try:
        mean = fit_mean(cfg, config, parts, loggers)
        mean_fitted = time.monotonic()
        variance = fit_variance(cfg, config, parts, mean, loggers)
        variance_fitted = time.monotonic()
        if first_process():
            for checkpoint in filter(None, (mean, variance)):
                checkpoint.save(folder / "checkpoints" / f"{checkpoint.kind}.safetensors")
        results = _evaluate(cfg, parts, folder)
        if first_process():
            results["wall_time_s"] |= {
                "mean": mean_fitted - started,
                "variance": variance_fitted - mean_fitted,
                "total": time.monotonic() - started,
            }
            _finish(results, folder, loggers, cfg.trainer.max_steps)
    finally:
        _close(loggers)
    return results


def sample(cfg: DictConfig) -> Path:
    """Draw samples from a run's checkpoints: a picture, and the samples as ``.npz`` or PNG files.

    Args:
        cfg: composed from ``conf/sample.yaml`` and the run's overrides.
    Returns:
        The folder of the samples.
    """
    parts, folder = _restore(cfg)
    images, seconds = draw(cfg, parts, folder)
    if first_process():
        report.picture(images, folder / "samples.png")
        if cfg.format == "npz":
            import numpy as np

            np.savez_compressed(folder / "samples.npz", images.movedim(1, -1).numpy() if images.ndim == 4 else images)
        elif images.ndim != 4:
            raise ConfigError("format = png writes images, but the samples are vectors: set format=npz")
        else:
            (folder / "samples").mkdir()
            for i, image in enumerate(images):
                report.picture(image[None], folder / "samples" / f"{i:06d}.png", scale=1)
        log.info("%d samples in %.1f s: %s", len(images), seconds, folder)
    return folder


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Sample from a run's checkpoints and score it again.

    Args:
        cfg: composed from ``conf/evaluate.yaml`` and the run's overrides.
    Returns:
        What ``results.json`` of the evaluation holds.
    """
    started = time.monotonic()
    parts, folder = _restore(cfg)
    results = _evaluate(cfg, parts, folder)
    if first_process():
        results["wall_time_s"]["total"] = time.monotonic() - started
        _finish(results, folder, [], 0)
    return results


def draw(cfg: DictConfig, parts: Parts, folder: Path) -> tuple[Tensor, float]:
    """``num_samples`` samples over all devices.

    Returns:
        uint8 ``[num_samples, *data_shape]`` on the first process (nothing on others), and the seconds it took.
    """
    trainer = make_trainer(cfg, callbacks=[StageProgressBar("3/3 sampling")])
    parts_folder = folder / ".parts"
    parts_folder.mkdir(exist_ok=True)
    stage = SamplingStage(parts.denoiser, parts.strategy, parts.sampler, parts.times, cfg.seed, parts_folder)
    started = time.monotonic()
    indices: DataLoader[int] = DataLoader(range(cfg.num_samples), batch_size=cfg.sample_batch_size)  # type: ignore[arg-type]
    trainer.predict(stage, indices, return_predictions=False)
    seconds = time.monotonic() - started
    trainer.strategy.barrier()
    if not first_process():
        return torch.empty(0, dtype=torch.uint8), seconds
    loaded = [torch.load(path, weights_only=True) for path in sorted(parts_folder.glob("part_*.pt"))]
    order = torch.cat([part["indices"] for part in loaded]).argsort()
    images = torch.cat([part["images"] for part in loaded])[order]
    shutil.rmtree(parts_folder)
    return images, seconds


def _evaluate(cfg: DictConfig, parts: Parts, folder: Path) -> dict[str, Any]:
    log.info("sampling: %d samples, %d steps", cfg.num_samples, len(parts.times))
    images, seconds = draw(cfg, parts, folder)
    if not first_process():
        return {}
    report.picture(images, folder / "samples.png")
    reference = parts.data.reference()
    scores = {}
    for metric in parts.metrics.values():
        with refusals("metric"):
            metric.update(reference, real=True)
            metric.update(images, real=False)
            scores[with_count(metric.name, len(images))] = metric.compute()
    return {
        "metrics": scores,
        "reference": f"{_choices()['data']} train ({len(reference)})",
        "num_samples": len(images),
        **{key: value for key, value in _choices().items() if key != "metric"},
        "num_steps": parts.sampler.num_steps,
        "nfe": len(parts.times),
        "seed": cfg.seed,
        "overrides": _overrides(),
        "throughput_images_per_s": len(images) / seconds,
        "wall_time_s": {"sampling": seconds},
        "git_revision": _git_revision(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "lightning", "optcov")}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "output_dir": str(folder),
    }


def _restore(cfg: DictConfig) -> tuple[Parts, Path]:
    """A run's networks, from its own checkpoints, with the sampler of ``cfg``; and the new output folder."""
    _quiet()
    run = Path(cfg.run)
    saved = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert isinstance(saved, DictConfig)
    for key in ("data", "model", "schedule", "parameterization", "time_offset"):
        cfg[key] = saved[key]
    cfg.mean_ckpt = str(run / "checkpoints" / "mean.safetensors")
    cfg.var_ckpt = str(run / "checkpoints" / "variance.safetensors")
    config = check(cfg)
    parts = build(cfg)
    if parts.strategy.fitting != "none" and config["var"] != OmegaConf.to_container(saved["var"]):
        raise ConfigError(
            f"var = {_choices()['var']} was not fitted in run = {run}: fit it with "
            f"train.py var={_choices()['var']} mean_ckpt={cfg.mean_ckpt}, then give that run"
        )
    mean = fit_mean(cfg, config, parts, [])
    fit_variance(cfg, config, parts, mean, [])
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return parts, folder


def _claim(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Take a folder for this run; what is there already is kept.

    Returns:
        The results of the same run, if it ended here before.
    """
    settings = {key: value for key, value in config.items() if key != "output_dir"}
    saved = folder / ".hydra" / "config.yaml"
    if not first_process():
        return None
    if saved.is_file():
        earlier = OmegaConf.to_container(OmegaConf.load(saved))
        assert isinstance(earlier, dict)
        if {key: value for key, value in earlier.items() if key != "output_dir"} != _plain(settings):
            raise ConfigError(f"output_dir = {folder} holds a run with another config: choose another hydra.run.dir")
        if (folder / "results.json").is_file():
            return dict(json.loads((folder / "results.json").read_text()))
        return None
    if (folder / "results.json").is_file():
        raise ConfigError(f"output_dir = {folder} holds another run's results.json: choose another hydra.run.dir")
    saved.parent.mkdir(parents=True, exist_ok=True)
    overrides = list(HydraConfig.get().overrides.task)
    report.write_atomically(saved.with_name("overrides.yaml"), OmegaConf.to_yaml(OmegaConf.create(overrides)))
    report.write_atomically(saved, OmegaConf.to_yaml(OmegaConf.create(config)))
    return None


def _plain(settings: dict[str, Any]) -> Any:
    return OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(settings))))


def _finish(results: dict[str, Any], folder: Path, loggers: list[Logger], step: int) -> None:
    report.write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    row = {"num_steps": results["num_steps"], "nfe": results["nfe"], **results["metrics"]}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("samples", [str(folder / "samples.png")])
            columns = ["var", "sampler", "trajectory", *row]
            logger.log_table("results", columns, [[results.get(column, row.get(column)) for column in columns]])
        logger.log_metrics(row, step)
    report.show_run(results)


def _loggers(cfg: DictConfig, config: dict[str, Any]) -> list[Logger]:
    if not first_process():
        return []
    with refusals("logger"):
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # its folder holds .hydra/config.yaml
            logger.log_hyperparams(config | {"choices": _choices()})
    return loggers


def _close(loggers: list[Logger]) -> None:
    for logger in loggers:
        logger.finalize("success")
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        if wandb.run is not None and wandb.run.url:
            log.info("W&B: %s", wandb.run.url)
        wandb.finish()


def _choices() -> dict[str, str]:
    """The option chosen in each group."""
    chosen = HydraConfig.get().runtime.choices
    return {group: str(chosen[group]) for group in GROUPS if group in chosen}


def _overrides() -> dict[str, Any]:
    """The overrides of this job inside groups and at the top level, by key."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return {override.key_or_group: str(override.value()) for override in parsed if override.key_or_group not in GROUPS}


def _git_revision() -> str | None:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _quiet() -> None:
    """Leave the terminal to what a user asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*[Cc]heckpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
