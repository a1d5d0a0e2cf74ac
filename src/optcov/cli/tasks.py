"""The tasks behind ``train.py``, ``sample.py`` and ``evaluate.py``: compose, build, fit, sample, score, report."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optcov.added import with_added
from optcov.cli.build import Parts, build
from optcov.cli.curve import write_variance_curve
from optcov.cli.draw import draw, forget, preview, write_npz, write_pngs
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.fit import fit_classifier, fit_mean, fit_trajectory, fit_variance
from optcov.cli.identity import NETWORK, NOT_IDENTITY, difference, plan
from optcov.cli.machine import settle
from optcov.cli.preflight import check
from optcov.cli.report import show_run
from optcov.cli.run_folder import choices, claim, overrides, provenance
from optcov.cli.score import Scores, score_model, score_samples, wants_samples
from optcov.cli.trainer import computing, make_callbacks, make_trainer, root_device, sampling_trainer
from optcov.cli.wandb import WandbRun
from optcov.files import write_atomically
from optcov.guidance import Guidance
from optcov.report import check_comparable, gather, write_report
from optcov.report.runs import FORMAT
from optcov.training.store import rank_zero

log = logging.getLogger(__name__)

# keys of a run that what is made of it keeps
OF_THE_RUN = ("data", *NETWORK, "conditional", "label_dropout")
# its checkpoints, by the keys that put others in their place
CHECKPOINTS = {"mean_ckpt": "mean", "var_ckpt": "variance", "classifier_ckpt": "classifier"}


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
    settle(cfg, parts.denoiser, trainer.strategy.root_device, trainer.num_devices)
    make_callbacks(cfg, parts, {})
    fits = plan(cfg, config, parts)
    folder = Path(cfg.output_dir)
    done = claim(folder, config) if rank_zero() else None
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
        classifier = fit_classifier(cfg, parts, fits, loggers)
        classifier_fitted = time.monotonic()
        if rank_zero():
            for checkpoint in filter(None, (mean, variance, classifier)):
                checkpoint.save(folder / "checkpoints" / f"{checkpoint.kind}.safetensors")
            write_variance_curve(cfg, parts, folder)
        results = _evaluate(cfg, parts, folder)
        if rank_zero():
            results["wall_time_s"] |= {
                "mean": mean_fitted - started,
                "variance": variance_fitted - mean_fitted,
                **({"classifier": classifier_fitted - variance_fitted} if classifier else {}),
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
    cfg.metric = {}  # nothing is scored, so that nothing need be there for it
    parts, folder, _ = _restore(cfg)
    if cfg.get("mode") is not None:
        with refusals("mode"), computing(sampling_trainer(cfg)) as device:
            instantiate(cfg.mode).draw(parts, folder, cfg.seed, device)
        return folder
    if cfg.format == "png" and len(parts.denoiser.data_shape) != 3:
        raise ConfigError("format = png writes images, but the samples are vectors: set format=npz")
    place = folder / ("samples.npz" if cfg.format == "npz" else "samples")
    if rank_zero() and place.exists() and not (folder / ".parts").exists():
        raise ConfigError(f"output_dir = {folder} holds finished samples: choose another hydra.run.dir")
    drawn = draw(cfg, parts, folder)
    if rank_zero():
        labels = parts.labels(len(drawn), cfg.seed)
        preview(drawn, folder / "samples.png", labels)
        if cfg.format == "npz":
            write_npz(drawn, len(drawn), drawn.shape, place, labels)
        else:
            write_pngs(drawn, len(drawn), place)
            if labels is not None:
                rows = [f"{i:06d}.png,{label}" for i, label in enumerate(labels.tolist())]
                write_atomically(folder / "labels.csv", "\n".join(["file,label", *rows]) + "\n")
        log.info("%d samples in %.1f s: %s", len(drawn), drawn.seconds(), folder)
        forget(folder)
    return folder


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Sample from a run's checkpoints and score it again.

    Args:
        cfg: composed from ``conf/evaluate.yaml`` and the run's overrides.
    Returns:
        What ``results.json`` of the evaluation holds.
    """
    started = time.monotonic()
    parts, folder, config = _restore(cfg)
    results = _evaluate(cfg, parts, folder)
    if rank_zero():
        (folder / ".hydra").mkdir(exist_ok=True)
        write_atomically(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        results["wall_time_s"]["total"] = time.monotonic() - started
        _finish(results, folder, [], 0)
    return results


def compare(cfg: DictConfig) -> Path:
    """Report over runs.

    Args:
        cfg: composed from ``conf/report.yaml``.
    Returns:
        The folder of the report.
    """
    sources = cfg.runs if isinstance(cfg.runs, str) else list(cfg.runs)
    with refusals("runs"):
        runs = gather(sources)
        check_comparable(runs)
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_report(runs, folder)
    return folder


def _evaluate(cfg: DictConfig, parts: Parts, folder: Path) -> dict[str, Any]:
    scores, sampled = Scores(), {}
    if wants_samples(parts):
        log.info("sampling: %d samples, %d steps", cfg.num_samples, len(parts.times))
        drawn = draw(cfg, parts, folder)
        if rank_zero():
            labels = parts.labels(len(drawn), cfg.seed)
            preview(drawn, folder / "samples.png", labels)
            score_samples(cfg, parts, drawn, len(drawn), folder, scores)
            seconds = drawn.seconds()
            sampled = {
                "reference": scores.references,
                "num_samples": len(drawn),
                "labelled": labels is not None,
                "throughput_images_per_s": len(drawn) / seconds,
                "wall_time_s": {"sampling": seconds},
            }
    if not rank_zero():
        return {}
    score_model(cfg, parts, folder, scores)
    calls = parts.sampler.network_calls(parts.times)
    guidance = parts.guidance or Guidance(parts.denoiser)
    if guidance.classifier_calls:
        sampled["classifier_calls"] = calls * guidance.classifier_calls
    return {
        "format": FORMAT,
        "metrics": scores.values,
        "standard_errors": scores.standard_errors,
        "higher_is_better": scores.higher_is_better,
        **{key: value for key, value in choices().items() if key != "metric"},
        "num_steps": parts.sampler.num_steps,
        "nfe": calls * guidance.network_calls,
        "times": parts.times.tolist(),
        "seed": cfg.seed,
        "data_shape": list(parts.denoiser.data_shape),
        "overrides": overrides(),
        "wall_time_s": {},
        **sampled,
        **provenance(root_device(cfg)),
        "output_dir": str(folder),
    }


def _restore(cfg: DictConfig) -> tuple[Parts, Path, dict[str, Any]]:
    """A run's networks, with the sampler of ``cfg``; the new output folder; and the config, resolved.

    What a network was trained with comes from the run's config; where its data lie now, and checkpoints other than the
    run's own, from the command line.
    """
    _quiet()
    run = Path(cfg.run)
    saved = with_added(_plain(OmegaConf.load(run / ".hydra" / "config.yaml")))
    # the seed of the samples may be another; that of the split of the data is the run's
    asked = _plain(OmegaConf.merge(cfg, {"seed": saved["seed"]}))
    _refuse_other_settings(run, saved, asked)
    for key in OF_THE_RUN:
        cfg[key] = saved[key]
    cfg.data = saved["data"] | {key: value for key, value in asked["data"].items() if key in NOT_IDENTITY}
    given = {key: cfg[key] for key in CHECKPOINTS}
    own = {key: run / "checkpoints" / f"{kind}.safetensors" for key, kind in CHECKPOINTS.items()}
    for key in CHECKPOINTS:
        if given[key] is None:
            cfg[key] = str(own[key])
    config = check(cfg)
    parts = build(cfg)
    other_variance = config["var"] != saved["var"]
    if parts.strategy.fitting != "none" and given["var_ckpt"] is None and other_variance:
        raise ConfigError(
            f"var = {choices()['var']} was not fitted in run = {run}: fit it with "
            f"train.py var={choices()['var']} mean_ckpt={cfg.mean_ckpt}, then give that run"
        )
    guided_by_classifier = parts.guidance is not None and parts.guidance.classifier is not None
    if guided_by_classifier and given["classifier_ckpt"] is None and not Path(cfg.classifier_ckpt).is_file():
        raise ConfigError(
            f"guidance = {choices()['guidance']} was not trained in run = {run}: train its classifier with "
            f"train.py guidance={choices()['guidance']} mean_ckpt={cfg.mean_ckpt}, then give that run"
        )
    trainer = make_trainer(cfg)
    settle(cfg, parts.denoiser, trainer.strategy.root_device, trainer.num_devices)
    replaced = [key for key in CHECKPOINTS if given[key] is not None and own[key].is_file()]
    plan(cfg, config, parts, [key for key in replaced if key != "var_ckpt" or not other_variance])
    fit_trajectory(cfg, parts)
    folder = Path(cfg.output_dir)
    if any((folder / name).exists() for name in ("results.json", "checkpoints")):
        raise ConfigError(f"output_dir = {folder} holds a run or its results: choose another hydra.run.dir")
    folder.mkdir(parents=True, exist_ok=True)
    return parts, folder, config | given


def _refuse_other_settings(run: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse settings of this command line that would need another network, or other data, than the run's."""
    parser = OverridesParser.create()
    own, ours = (
        {(override.get_key_element(), str(override.value())): override.key_or_group for override in overrides}
        for overrides in (
            parser.parse_overrides([str(line) for line in OmegaConf.load(run / ".hydra" / "overrides.yaml")]),
            parser.parse_overrides(list(HydraConfig.get().overrides.task)),
        )
    )
    for key in (ours[override] for override in ours if override not in own):
        group, _, name = key.partition(".")
        if group == "data" and name.partition(".")[0] in NOT_IDENTITY:
            continue
        for each in OF_THE_RUN if key == "experiment" else (key,) if group in OF_THE_RUN else ():
            theirs, wanted = (_setting(config, each) for config in (saved, asked))
            if theirs != wanted:
                raise ConfigError(
                    f"run = {run} was made with {difference(each, theirs, wanted)}: leave {key} out, or train "
                    "a run with it"
                )


def _setting(config: dict[str, Any], key: str) -> Any:
    """What a key of the command line stands for; of data, without where and how they are read."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return {name: value for name, value in found.items() if name not in NOT_IDENTITY} if key == "data" else found


def _plain(config: DictConfig | ListConfig) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _finish(results: dict[str, Any], folder: Path, loggers: list[Logger], step: int) -> None:
    write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    forget(folder)
    row = {"num_steps": results["num_steps"], "nfe": results["nfe"], **results["metrics"]}
    for logger in loggers:
        logger.log_metrics(row, step)
        if isinstance(logger, WandbRun):
            logger.log_run(results, folder)
    show_run(results)


def _loggers(cfg: DictConfig, config: dict[str, Any]) -> list[Logger]:
    if not rank_zero():
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
        if isinstance(logger, WandbRun):
            logger.close(failed)


def _quiet() -> None:
    """Leave the terminal to what a user asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*[Cc]heckpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the frozen mean network
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
