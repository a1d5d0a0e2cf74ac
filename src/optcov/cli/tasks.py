"""The tasks behind ``train.py``, ``sample.py`` and ``evaluate.py``: compose, build, fit, sample, score, report."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from optcov.cli import report
from optcov.cli.build import Parts, build
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.fit import NETWORK, fit_mean, fit_trajectory, fit_variance, make_trainer, plan
from optcov.cli.machine import settle
from optcov.cli.preflight import check
from optcov.cli.run_folder import choices, claim, overrides, provenance
from optcov.cli.score import Scores, score_model, score_samples, wants_samples
from optcov.training import SamplingStage, StageProgressBar
from optcov.training.store import first_process

log = logging.getLogger(__name__)


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
    trainer = make_trainer(cfg)  # refuses what this machine can not do
    settle(cfg, parts.denoiser, trainer.strategy.root_device)
    fits = plan(cfg, config, parts)
    folder = Path(cfg.output_dir)
    done = claim(folder, config) if first_process() else None
    if done is not None:
        log.info("%s is finished already: nothing to do", folder)
        return done
    loggers = _loggers(cfg, config)
    try:
        mean = fit_mean(cfg, parts, fits, loggers)
        mean_fitted = time.monotonic()
        variance = fit_variance(cfg, parts, fits, loggers)
        fit_trajectory(cfg, parts)
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
    except BaseException:
        _close(loggers, failed=True)
        raise
    _close(loggers)
    return results


def sample(cfg: DictConfig) -> Path:
    """Draw samples from a run's checkpoints: a picture, and the samples as ``.npz`` or PNG files.

    Args:
        cfg: composed from ``conf/sample.yaml`` and the run's overrides.
    Returns:
        The folder of the samples.
    """
    if cfg.format not in ("npz", "png"):
        raise ConfigError(f"format = {cfg.format} is unknown: give npz or png")
    parts, folder = _restore(cfg)
    if cfg.get("mode") is not None:
        with refusals("mode"):
            instantiate(cfg.mode).draw(parts, folder, cfg.seed, make_trainer(cfg).strategy.root_device)
        return folder
    if cfg.format == "png" and len(parts.denoiser.data_shape) != 3:
        raise ConfigError("format = png writes images, but the samples are vectors: set format=npz")
    images, seconds = draw(cfg, parts, folder)
    if first_process():
        report.picture(images, folder / "samples.png")
        if cfg.format == "npz":
            channels_last = images.movedim(1, -1) if images.ndim == 4 else images
            np.savez_compressed(folder / "samples.npz", channels_last.numpy())
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
    precision = cfg.sample_precision or cfg.trainer.precision
    trainer = make_trainer(cfg, precision=precision, callbacks=[StageProgressBar("3/3 sampling")])
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
    scores, sampled = Scores(), {}
    if wants_samples(parts):
        log.info("sampling: %d samples, %d steps", cfg.num_samples, len(parts.times))
        images, seconds = draw(cfg, parts, folder)
        if first_process():
            report.picture(images, folder / "samples.png")
            score_samples(parts, images, scores)
        sampled = {
            "reference": f"{choices()['data']} train ({len(parts.data.reference())})",
            "num_samples": len(images),
            "throughput_images_per_s": len(images) / seconds,
            "wall_time_s": {"sampling": seconds},
        }
    if not first_process():
        return {}
    score_model(cfg, parts, folder, scores)
    return {
        "metrics": scores.values,
        "standard_errors": scores.standard_errors,
        **{key: value for key, value in choices().items() if key != "metric"},
        "num_steps": parts.sampler.num_steps,
        "nfe": parts.sampler.network_calls(parts.times),
        "times": parts.times.tolist(),
        "seed": cfg.seed,
        "overrides": overrides(),
        "wall_time_s": {},
        **sampled,
        **provenance(),
        "output_dir": str(folder),
    }


def _restore(cfg: DictConfig) -> tuple[Parts, Path]:
    """A run's networks, from its own checkpoints, with the sampler of ``cfg``; and the new output folder."""
    _quiet()
    run = Path(cfg.run)
    saved = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert isinstance(saved, DictConfig)
    for key in ("data", *NETWORK):
        cfg[key] = saved[key]
    cfg.mean_ckpt = str(run / "checkpoints" / "mean.safetensors")
    cfg.var_ckpt = str(run / "checkpoints" / "variance.safetensors")
    config = check(cfg)
    parts = build(cfg)
    if parts.strategy.fitting != "none" and config["var"] != OmegaConf.to_container(saved["var"]):
        raise ConfigError(
            f"var = {choices()['var']} was not fitted in run = {run}: fit it with "
            f"train.py var={choices()['var']} mean_ckpt={cfg.mean_ckpt}, then give that run"
        )
    settle(cfg, parts.denoiser, make_trainer(cfg).strategy.root_device)
    plan(cfg, config, parts)
    fit_trajectory(cfg, parts)
    folder = Path(cfg.output_dir)
    if (folder / "results.json").exists():
        raise ConfigError(f"output_dir = {folder} holds a run's results: choose another hydra.run.dir")
    folder.mkdir(parents=True, exist_ok=True)
    return parts, folder


def _finish(results: dict[str, Any], folder: Path, loggers: list[Logger], step: int) -> None:
    report.write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    row = {"num_steps": results["num_steps"], "nfe": results["nfe"], **results["metrics"]}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            if (folder / "samples.png").is_file():
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
            logger.log_hyperparams(config | {"choices": choices()})
    return loggers


def _close(loggers: list[Logger], failed: bool = False) -> None:
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        if wandb.run is not None and not wandb.run.offline:
            log.info("W&B: %s", wandb.run.url)
        wandb.finish(exit_code=int(failed))


def _quiet() -> None:
    """Leave the terminal to what a user asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*[Cc]heckpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
