"""The tasks behind ``train.py``, ``sample.py`` and ``evaluate.py``: build, fit, sample, score."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from optcov.cli.build import Run, assemble
from optcov.cli.evaluate import draw, evaluate_run, write_variance_profile
from optcov.cli.fit import fit_all, fit_steps, make_callbacks
from optcov.errors import ConfigError, config_errors, must
from optcov.files import write_atomically
from optcov.foreign import sealed_json
from optcov.guidance import MeasurementGuidance
from optcov.keys import Config
from optcov.lock import locked
from optcov.parts import Parts
from optcov.report.export import write_npz, write_pngs
from optcov.report.write import show_run
from optcov.restoring import write_restored
from optcov.run_folder import open_run_folder, refuse_links, write_config, write_results
from optcov.training.loggers import log_results, told
from optcov.training.machine import Machine, configure_machine
from optcov.training.plan import plan_fits
from optcov.training.sample_store import PARTS, delete_partial_samples, read_record, samples_identity
from optcov.training.store import rank_zero

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
    started = time.monotonic()
    run = _run("train", config, parts)
    make_callbacks(run.config, run.parts, {})  # refuses a run that cannot be tracked
    plan = plan_fits(run.config, run.parts)
    with _alone(run):
        if (done := _finished(run)) is not None:
            return done
        loggers = _loggers(run.config)
        with told(loggers, run.config.model_dump(exclude={"overrides"})):
            seconds = fit_all(run, plan, loggers)
            if rank_zero():
                write_variance_profile(run)
            return _evaluate(run, loggers, started, seconds)


def sample(config: Config, parts: Parts | None = None) -> Path:
    """Draw samples from a run's checkpoints, and write a picture and the samples as ``.npz`` or PNG files.

    Args:
        config: a checked config of ``conf/sample.yaml``, based on the run's.
        parts: as in `train`.
    Returns:
        The folder of the samples.
    """
    run = _restore("sample", config, parts)
    config, parts, folder = run.config, run.parts, run.folder
    if config.mode is not None:
        with config_errors("mode"), run.machine.sampling() as device:
            instantiate(config.mode).draw(parts, folder, config.seed, device)
        return folder
    if config.format == "png" and (len(parts.data.sample_shape) != 3 or parts.data.sample_dtype.is_floating_point):
        raise ConfigError("format must be npz for samples that are vectors or tensors (got png): set format=npz")
    place = folder / ("samples.npz" if config.format == "npz" else "samples")
    with _alone(run):
        _draw(run, place)
    return folder


def _draw(run: Run, place: Path) -> None:
    """Draw and export samples, unless that is done; ``samples.json`` says of what, and that they are complete."""
    config, folder = run.config, run.folder
    record, identity = folder / "samples.json", None
    if rank_zero():
        identity = samples_identity(config, run.parts, run.machine.device)
        ours = identity | {"num_samples": config.num_samples}
        if place.exists() and not (folder / PARTS / "identity.json").exists():
            if not record.exists() or read_record(record) != ours:
                raise ConfigError(f"output_dir = {folder} holds other samples: choose another hydra.run.dir")
            _nothing_to_do(folder)
            return
    drawn, labels = draw(run, identity)
    if identity is not None:
        if config.format == "npz":
            write_npz(drawn, len(drawn), drawn.shape, place, labels, drawn.dtype)
        else:
            write_pngs(drawn, len(drawn), place, labels)
        guidance, shape = run.parts.guidance, run.parts.data.sample_shape
        is_image = len(shape) == 3 and shape[0] in (1, 3) and shape == run.parts.denoiser.data_shape
        if isinstance(guidance, MeasurementGuidance) and is_image:
            write_restored(drawn, guidance, run.parts.denoiser.data_range, folder)
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
    run = _restore("evaluate", config, parts)
    with _alone(run):
        done = _finished(run) if (run.folder / "results.json").exists() else None
        if done is not None:
            show_run(done)
            return done
        return _evaluate(run, [], started, {})


def _evaluate(run: Run, loggers: list[Logger], started: float, seconds: dict[str, float]) -> dict[str, Any]:
    """Sample and score a fitted run, and write and show its results."""
    results = evaluate_run(run)
    if rank_zero():
        write_config(run.folder, run.config)
        results["wall_time_s"] |= seconds | {"total": time.monotonic() - started}

        def write() -> None:
            write_results(run.folder, results)
            delete_partial_samples(run.folder)

        log_results(loggers, results, run.config.trainer["max_steps"], run.folder, write)
        show_run(results)
    return results


def _finished(run: Run) -> dict[str, Any] | None:
    """Claim the run's folder; returns the results if the same run has already finished there."""
    done = open_run_folder(run.config) if rank_zero() else None
    if done is not None:
        _nothing_to_do(run.folder)
    return done


def _nothing_to_do(folder: Path) -> None:
    log.info("%s is finished already: nothing to do", folder)
    delete_partial_samples(folder)


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Let only one command at a time work in a run's folder; its own further processes do not wait."""
    if not rank_zero():
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(run.folder)
    with locked(run.folder / ".lock", f"output_dir = {run.folder}", run.config.wait):
        yield


def _run(task: str, config: Config, parts: Parts | None) -> Run:
    """Build everything a job needs, and refuse bad configs before anything expensive starts."""
    _quiet()
    machine = Machine.of(config)
    if parts is None:
        config, parts = assemble(task, config)
    configure_machine(config, parts.denoiser, machine)
    run = Run(config, parts, machine)
    run.trainer()  # refuses arguments of the Trainer before anything is written
    return run


def _restore(task: str, config: Config, parts: Parts | None) -> Run:
    """Load a run's networks with the config's sampler, and claim a new output folder.

    Raises:
        ConfigError, CheckpointError: if the run cannot do what the config requests; nothing has been written then.
    """
    run = _run(task, config, parts)
    plan_fits(run.config, run.parts)
    fit_steps(run)
    if (run.folder / "checkpoints").exists():
        raise ConfigError(f"output_dir = {run.folder} holds a run: choose another hydra.run.dir")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def _loggers(config: Config) -> list[Logger]:
    if not rank_zero():
        return []
    with config_errors("logger"):
        made = [instantiate(logger) for logger in config.logger.values()]
        loggers = [each(config=config) if isinstance(each, partial) else each for each in made]
    for name, logger in zip(config.logger, loggers, strict=True):
        if not isinstance(logger, Logger):
            raise must(f"logger.{name}", "a logger of Lightning", type(logger).__name__, "leave it out")
    return loggers


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
