"""The tasks behind ``train.py``, ``sample.py`` and ``evaluate.py``: build, fit, sample, score."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from optcov.cli.build import Run, assemble
from optcov.cli.evaluate import draw, evaluate_run, samples_identity, write_variance_profile
from optcov.cli.fit import CHECKPOINTS, FitPlan, fit, fit_trajectory, make_callbacks, plan_fits
from optcov.cli.machine import Machine, configure_machine
from optcov.cli.report import show_run
from optcov.errors import ConfigError, config_errors, must
from optcov.files import write_atomically
from optcov.foreign import sealed_json
from optcov.keys import Config
from optcov.lock import locked
from optcov.parts import Parts
from optcov.report.export import write_npz, write_pngs
from optcov.run_folder import Saved, open_run_folder, write_config, write_results
from optcov.training.csv_log import MetricsCSV
from optcov.training.sample_store import PARTS, delete_partial_samples, read_record
from optcov.training.store import Checkpoint, Kind, rank_zero
from optcov.training.wandb import WandbRun

log = logging.getLogger(__name__)


def train(config: Config, parts: Parts | None = None) -> dict[str, Any]:
    """Run a whole job: fit the mean and its variance, unless that was done before, then sample and score.

    Args:
        config: a checked config of ``conf/config.yaml``.
        parts: the result of `assemble`, whose config then replaces ``config``; None to assemble it here.
    Returns:
        The content of ``results.json``.
    Raises:
        ConfigError, CheckpointError: if the config cannot be run; nothing has been written then.
    """
    _quiet()
    started = time.monotonic()
    run = _run(config, parts)
    config = run.config
    make_callbacks(config, run.parts, {})  # refuses a run that cannot be tracked
    plan = plan_fits(config, run.parts)
    with _alone(run.folder):
        done = open_run_folder(config) if rank_zero() else None
        if done is not None:
            log.info("%s is finished already: nothing to do", run.folder)
            delete_partial_samples(run.folder)
            return done
        return _train(run, plan, started)


def _train(run: Run, plan: FitPlan, started: float) -> dict[str, Any]:
    """Fit, sample and score in a folder that this process has claimed."""
    config = run.config
    loggers = _loggers(config)
    try:
        fitted: dict[Kind, Checkpoint | None] = {}
        seconds: dict[str, float] = {}
        for kind in get_args(Kind):
            began = time.monotonic()
            fitted[kind] = fit(run, plan, kind, loggers)
            if kind == "variance":
                fit_trajectory(run)
            if fitted[kind] is not None or kind != "classifier":
                seconds[kind] = time.monotonic() - began
        if rank_zero():
            for kind, checkpoint in fitted.items():
                if checkpoint is not None:
                    checkpoint.save(run.folder / "checkpoints" / f"{kind}.safetensors")
            write_variance_profile(run)
        results = evaluate_run(run)
        if rank_zero():
            results["wall_time_s"] |= seconds | {"total": time.monotonic() - started}
            _finish(run, results, loggers)
    except BaseException:
        _close(loggers, failed=True)
        raise
    _close(loggers)
    return results


def sample(config: Config, parts: Parts | None = None) -> Path:
    """Draw samples from a run's checkpoints, and write a picture and the samples as ``.npz`` or PNG files.

    Args:
        config: a checked config of ``conf/sample.yaml``, based on the run's.
        parts: as in `train`.
    Returns:
        The folder of the samples.
    """
    run = _restore(config, parts)
    config, parts, folder = run.config, run.parts, run.folder
    if config.mode is not None:
        with config_errors("mode"), run.machine.sampling() as device:
            instantiate(config.mode).draw(parts, folder, config.seed, device)
        return folder
    if config.format == "png" and (len(parts.data.sample_shape) != 3 or parts.data.sample_dtype.is_floating_point):
        raise ConfigError("format must be npz for samples that are vectors or tensors (got png): set format=npz")
    place = folder / ("samples.npz" if config.format == "npz" else "samples")
    with _alone(folder):
        _draw(run, place)
    return folder


def _draw(run: Run, place: Path) -> None:
    """Draw and export samples, unless that is done; ``samples.json`` says of what, and that they are complete."""
    config, folder = run.config, run.folder
    record, identity = folder / "samples.json", samples_identity(run) if rank_zero() else None
    if identity is not None:
        ours = identity | {"num_samples": config.num_samples}
        if place.exists() and not (folder / PARTS / "identity.json").exists():
            if not record.exists() or read_record(record) != ours:
                raise ConfigError(f"output_dir = {folder} holds other samples: choose another hydra.run.dir")
            log.info("%s is finished already: nothing to do", folder)
            delete_partial_samples(folder)
            return
    drawn, labels = draw(run, identity)
    if identity is not None:
        if config.format == "npz":
            write_npz(drawn, len(drawn), drawn.shape, place, labels, drawn.dtype)
        else:
            write_pngs(drawn, len(drawn), place)
            if labels is not None:
                rows = [f"{i:06d}.png,{label}" for i, label in enumerate(labels.tolist())]
                write_atomically(folder / "labels.csv", "\n".join(["file,label", *rows]) + "\n")
        log.info("%d samples in %.1f s: %s", len(drawn), drawn.seconds(), folder)
        write_atomically(record, sealed_json(ours))
        delete_partial_samples(folder)


def evaluate(config: Config, parts: Parts | None = None) -> dict[str, Any]:
    """Sample from a run's checkpoints and score it again.

    Args:
        config: a checked config of ``conf/evaluate.yaml``, based on the run's.
        parts: as in `train`.
    Returns:
        The content of the evaluation's ``results.json``.
    """
    started = time.monotonic()
    run = _restore(config, parts)
    with _alone(run.folder):
        done = open_run_folder(run.config) if rank_zero() and (run.folder / "results.json").exists() else None
        if done is not None:
            log.info("%s is finished already: nothing to do", run.folder)
            delete_partial_samples(run.folder)
            show_run(done)
            return done
        results = evaluate_run(run)
        if rank_zero():
            write_config(run.folder, run.config)
            results["wall_time_s"]["total"] = time.monotonic() - started
            _finish(run, results, [])
        return results


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let only one command at a time work in a folder; its own further processes do not wait."""
    if not rank_zero():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"output_dir = {folder}"):
        yield


def _run(config: Config, parts: Parts | None) -> Run:
    """Build everything a job needs, and refuse bad configs before anything expensive starts."""
    machine = Machine.of(config)
    if parts is None:
        config, parts = assemble(config)
    run = Run(config, parts, machine)
    configure_machine(config, run.parts.denoiser, machine)
    return run


def _restore(config: Config, parts: Parts | None) -> Run:
    """Load a run's networks with the config's sampler, and claim a new output folder.

    Raises:
        ConfigError, CheckpointError: if the run cannot do what the config requests; nothing has been written then.
    """
    _quiet()
    folder = Path(str(config.run))
    run = _run(config, parts)
    config = run.config
    guidance, strategy = run.parts.guidance, run.parts.strategy
    own = {key: folder / "checkpoints" / f"{kind}.safetensors" for key, kind in CHECKPOINTS.items()}
    unfitted = None
    other_variance = config.var != Saved.read(folder).values["var"]
    if strategy.needs_fit and config.var_ckpt is None and other_variance:
        unfitted = "var", "fitted", "fit it"
    has_classifier = config.classifier_ckpt is not None or own["classifier_ckpt"].is_file()
    if guidance is not None and guidance.classifier is not None and not has_classifier:
        unfitted = "guidance", "trained", "train its classifier"
    if unfitted is not None:
        key, done, do = unfitted
        mean = f"mean_ckpt={config.mean_ckpt or own['mean_ckpt']}"
        if not run.parts.trains_mean:
            mean = f"model={config.choices['model']} model.source={config.model['source']}"
        raise ConfigError(
            f"{key} = {config.choices[key]} was not {done} in run = {folder}: {do} with "
            f"train.py {key}={config.choices[key]} {mean}, then give that run"
        )
    plan_fits(config, run.parts, own)
    fit_trajectory(run)
    if (run.folder / "checkpoints").exists():
        raise ConfigError(f"output_dir = {run.folder} holds a run: choose another hydra.run.dir")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def _finish(run: Run, results: dict[str, Any], loggers: list[Logger]) -> None:
    write_results(run.folder, results)
    delete_partial_samples(run.folder)
    row = {key: results[key] for key in ("num_steps", "nfe", "ne") if key in results} | results["metrics"]
    for logger in loggers:
        logger.log_metrics(row, run.config.trainer["max_steps"])
        if isinstance(logger, WandbRun):
            logger.log_run(results, run.folder)
    show_run(results)


def _loggers(config: Config) -> list[Logger]:
    if not rank_zero():
        return []
    with config_errors("logger"):
        made = [instantiate(logger) for logger in config.logger.values()]
        loggers = [each(config=config) if isinstance(each, partial) else each for each in made]
    for name, logger in zip(config.logger, loggers, strict=True):
        if not isinstance(logger, Logger):
            raise must(f"logger.{name}", "a logger of Lightning", type(logger).__name__, "leave it out")
        if not isinstance(logger, MetricsCSV):  # its folder holds .hydra/config.yaml
            logger.log_hyperparams(config.model_dump(exclude={"overrides"}))
    return loggers


def _close(loggers: list[Logger], failed: bool = False) -> None:
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbRun):
            logger.close(failed)


def _quiet() -> None:
    """Suppress output that the user did not ask for."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "[Cc]heckpoint directory.*exists and is not empty",
        "Experiment logs directory",
        "predict returned None",
        "in eval mode at the start of training",  # the frozen mean network
        "LeafSpec",
        "is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
