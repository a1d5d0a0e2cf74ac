"""The fits of a run: each is given as a checkpoint, found in the cache, or done now."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from optcov.cli.build import Run
from optcov.errors import config_errors, must
from optcov.keys import Config
from optcov.parts import Parts
from optcov.seeds import Stream, derive_seed
from optcov.signals import Terminated, Unfinished, patient, requeued_after
from optcov.training import (
    Checkpoint,
    ClassifierStage,
    DataModule,
    Entry,
    MeanStage,
    ResumePoint,
    Stage,
    StageProgressBar,
    StageSettings,
    VarianceStage,
)
from optcov.training.csv_log import MetricsCSV
from optcov.training.modules import steps_before_cooldown
from optcov.training.plan import FitPlan
from optcov.training.store import Identity, Kind, rank_zero
from optcov.training.tracking import Tracking
from optcov.variance.base import Calibrated, Trained

log = logging.getLogger(__name__)


def fit_all(run: Run, plan: FitPlan, loggers: list[Logger]) -> dict[str, float]:
    """Fit everything, and write the checkpoints into the folder of the run.

    Returns:
        The seconds that each fit took.
    """
    fitted: dict[Kind, Checkpoint | None] = {}
    seconds: dict[str, float] = {}
    for kind in get_args(Kind):
        began = time.monotonic()
        fitted[kind] = fit(run, plan, kind, loggers)
        if kind == "variance":
            fit_steps(run)
        if fitted[kind] is not None or kind != "classifier":
            seconds[kind] = time.monotonic() - began
    for kind, checkpoint in fitted.items():
        if checkpoint is not None and rank_zero():
            checkpoint.save(run.folder / "checkpoints" / f"{kind}.safetensors")
    return seconds


def fit(run: Run, plan: FitPlan, kind: Kind, loggers: list[Logger]) -> Checkpoint | None:
    """Put fitted weights into the denoiser, strategy or classifier of a run: given, found in the cache, or fitted now.

    Returns:
        The checkpoint, or None if there is nothing to fit.
    """
    identity = getattr(plan, kind)
    if identity is None or kind in plan.given:
        return plan.given.get(kind)
    config, parts = run.config, run.parts
    classifier = parts.guidance.classifier if parts.guidance is not None else None
    module = {"mean": parts.denoiser, "variance": parts.strategy, "classifier": classifier}[kind]
    assert module is not None
    calibrated = kind == "variance" and isinstance(parts.strategy, Calibrated)
    entry = Entry(Path(config.cache_dir), kind, identity)
    checkpoint = entry.load()  # what is finished needs no lock, so that the cache may be read-only
    with nullcontext() if checkpoint is not None else entry.lock(config.wait):
        checkpoint = checkpoint or entry.load()  # another process may have been first
        if checkpoint is None:
            log.info("%s: fitting (will be kept as %s)", kind, entry.path)
            if calibrated:
                with run.machine.training() as device:
                    parts.calibrate(device, config.seed)
            else:
                run_stage(run, *_stage(run, kind), loggers, entry)
            checkpoint = Checkpoint(kind, identity, module.state_dict())
            if rank_zero():
                checkpoint.save(entry.path)
                shutil.rmtree(entry.resume_folder, ignore_errors=True)
            return checkpoint
    log.info("%s: found %s", kind, entry.path)
    if "tracking" in config.callbacks and kind != "classifier" and not calibrated:
        log.info("%s: fitted before, so that there is nothing to track; another cache_dir fits it again", kind)
    return checkpoint.load_into(module, f"cache_dir = {config.cache_dir}")


def _stage(run: Run, kind: Kind) -> tuple[Stage, str]:
    """The stage that trains weights of a kind, and its name for the user."""
    config, parts = run.config, run.parts
    lr = config.variance_lr if kind == "variance" else None
    own = {} if lr is None else {"lr": lr}
    optimizer = instantiate(config.optimizer, _convert_="all", **own)  # a resume point may hold plain lists only
    settings = StageSettings(optimizer, config.warmup_steps, config.cooldown, config.seed, config.label_dropout)
    if kind == "mean":
        return MeanStage(parts.denoiser, settings), "1/3 mean network"
    if kind == "variance":
        assert isinstance(parts.strategy, Trained)
        stage = VarianceStage(parts.denoiser, parts.strategy, settings)
        return stage, f"2/3 variance ({type(parts.strategy).__name__})"
    assert parts.guidance is not None
    assert parts.guidance.classifier is not None
    return ClassifierStage(parts.denoiser, parts.guidance.classifier, settings), "classifier"


def fit_steps(run: Run) -> None:
    """Fit what depends on the model of the trajectory and of the sampler; neither is kept in the cache."""
    seed = derive_seed(run.config.seed, Stream.TRAJECTORY)
    with config_errors("trajectory"), run.machine.training() as device:
        run.parts.fit_trajectory(device, seed, run.config.sample_batch_size)
    with config_errors("sampler"), run.machine.training() as device:
        run.parts.fit_sampler(device, seed)


def make_callbacks(config: Config, parts: Parts, identity: Identity) -> list[Callback]:
    """Make the config's Lightning callbacks for one stage.

    Args:
        config, parts: config and objects of the run.
        identity: everything that determines the weights of the stage.
    Raises:
        ConfigError: if tracking is not possible for these parts.
    """
    with config_errors("callbacks"):
        callbacks: list[Callback | Tracking] = [instantiate(callback) for callback in config.callbacks.values()]
        for name, callback in zip(config.callbacks, callbacks, strict=True):
            if isinstance(callback, Tracking):
                callback.check(parts)
            elif not isinstance(callback, Callback):
                raise must(f"callbacks.{name}", "a callback of Lightning", type(callback).__name__, "leave it out")
    return [each.tracker(config, parts, identity) if isinstance(each, Tracking) else each for each in callbacks]


def run_stage(run: Run, stage: Stage, description: str, loggers: list[Logger], entry: Entry) -> None:
    """Train a stage to its last step, resuming an interrupted run; afterwards it holds the averaged weights."""
    config, parts = run.config, run.parts
    before_cooldown = None
    if stage.name == "mean":
        if same_as_longer := steps_before_cooldown(config.trainer["max_steps"], config.cooldown):
            before_cooldown = entry.before_cooldown, same_as_longer
        if rank_zero():
            entry.go_on_from_a_shorter_fit()
    keep = ResumePoint(entry.resume_folder, config.checkpoint_every, before_cooldown)
    callbacks = make_callbacks(config, parts, entry.identity)
    steps = config.variance_steps if stage.name == "variance" else None
    own = {} if steps is None else {"max_steps": steps}
    trainer = run.trainer(logger=loggers, callbacks=[*callbacks, StageProgressBar(description), keep], **own)
    found = keep.find()
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.resume(stage.name, 0 if found is None else found[1])

    def stop() -> None:
        trainer.should_stop = True

    # several processes do not get a signal in the same step: theirs are requeued at once
    requeue = requeued_after(stop) if trainer.world_size == 1 else nullcontext()
    try:
        with patient(), requeue:
            trainer.fit(
                stage,
                datamodule=DataModule(parts.data, stage.labelled),
                ckpt_path=None if found is None else found[0],
                weights_only=True,
            )
    except SIGTERMException:
        raise Terminated(_stopped(description, trainer)) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # a launcher ends the job, to give it again
            raise
        # how Lightning ends on Ctrl+C
        raise KeyboardInterrupt(f"{description}; the same command continues from the last checkpoint") from None
    if trainer.global_step < trainer.max_steps:  # Lightning ends without an exception, for example at trainer.max_time
        raise Unfinished(_stopped(description, trainer))


def _stopped(description: str, trainer: Trainer) -> str:
    return (
        f"{description}: stopped at step {trainer.global_step:,} of {trainer.max_steps:,}: repeat the command to go on"
    )
