"""The fits of a run: each is identified by what determines it, so that it is reused, or replaced by a checkpoint."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from optcov.cli.build import Run
from optcov.cli.errors import config_errors, must
from optcov.cli.signals import Terminated, Unfinished, patient
from optcov.keys import NETWORK, TRAINING, Config, difference, select
from optcov.parts import Parts
from optcov.seeds import Stream, derive_seed
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
from optcov.training.store import FORMAT, CheckpointError, Identity, Kind, identity_key, rank_zero
from optcov.training.tracking import Tracking
from optcov.variance.base import Calibrated, Trained

log = logging.getLogger(__name__)
CHECKPOINTS: dict[str, Kind] = {"mean_ckpt": "mean", "var_ckpt": "variance", "classifier_ckpt": "classifier"}


@dataclass(frozen=True)
class FitPlan:
    """What determines each fit of a run, and the checkpoints that replace fits.

    Args:
        mean, variance, classifier: the identities; None if there is nothing to fit.
        given: checkpoints that are already loaded into the run's modules.
    """

    mean: Identity | None
    variance: Identity | None
    classifier: Identity | None
    given: dict[Kind, Checkpoint]


def plan_fits(config: Config, parts: Parts, own: Mapping[str, Path] | None = None) -> FitPlan:
    """Determine what must be fitted, and load the checkpoints given instead; writes nothing.

    Args:
        config: a checked config.
        parts: the objects of the run; checkpoints are loaded into its denoiser, strategy and classifier.
        own: the checkpoints of an existing run, used for keys of the config that name no checkpoint.
    Raises:
        CheckpointError: if a given checkpoint cannot be used.
    """
    given: dict[Kind, Checkpoint] = {}
    measured = ["var_ckpt"] if isinstance(parts.strategy, Calibrated) else []  # without learning a null label

    def load(key: str, module: nn.Module, expected: Identity, problems: Mapping[str, str]) -> Checkpoint | None:
        """Load the checkpoint that a key names, if any; refuse it if its identity differs in one of ``problems``."""
        asked, kind = getattr(config, key), CHECKPOINTS[key]
        path = asked or (own or {}).get(key)
        if path is None:
            return None
        given[kind] = checkpoint = Checkpoint.load(Path(path), kind, key)
        for name, problem in problems.items():
            theirs, ours = checkpoint.identity.get(name), expected[name]
            if theirs != ours:
                leave = key if asked else "mean_ckpt"  # the run's own variance fits its own mean
                raise CheckpointError(
                    f"{key} = {path} was {problem or f'trained with {difference(name, theirs, ours)}'}: "
                    f"give one that goes with these settings, or leave {leave} out"
                )
        knows_no_null_label = checkpoint.identity.get("label_dropout") == 0 and key not in measured
        if knows_no_null_label and parts.guidance is not None and parts.guidance.uses_null_label:
            raise CheckpointError(
                f"{key} = {path} was trained with label_dropout = 0 and has no null label, which guidance = "
                "classifier_free needs: give one trained with label_dropout=0.1, or set guidance.weight=1"
            )
        return load_into(module, checkpoint, f"{key} = {path}")

    values, num_classes = config.model_dump(), parts.denoiser.num_classes
    network = select(values, lambda what: what & NETWORK)
    del network["conditional"]
    network |= {"num_classes": num_classes, "data_shape": list(parts.denoiser.data_shape)}
    training = {"format": FORMAT} | select(values, lambda what: what & TRAINING)
    training["data"] |= parts.data.identity()  # the content of the files
    dropout = {} if num_classes is None else {"label_dropout": training["label_dropout"]}
    del training["label_dropout"]  # affects only class-conditional networks

    mean = variance = classifier = None
    if parts.trains_mean and list(parts.denoiser.parameters()):
        loaded = load("mean_ckpt", parts.denoiser, network, dict.fromkeys(network, ""))
        mean = network | training | dropout if loaded is None else loaded.identity
    if parts.guidance is not None and parts.guidance.classifier is not None:
        asked = {"guidance.classifier": config.guidance["classifier"], "schedule": config.schedule}
        load("classifier_ckpt", parts.guidance.classifier, asked, dict.fromkeys(asked, ""))
        classifier = asked | training
    if parts.strategy.needs_fit:
        asked = {"mean": network if mean is None else identity_key(mean), "var": config.var}
        problems = {"mean": "fitted to another mean network", "var": "fitted to other settings of var"}
        load("var_ckpt", parts.strategy, asked, problems)
        variance = asked | training | dropout | {key: getattr(config, key) for key in ("variance_steps", "variance_lr")}
    for key, kind in CHECKPOINTS.items():
        if (path := getattr(config, key)) is not None and kind not in given:
            raise must(key, f"left out where no {kind} is fitted", path, f"leave {key} out")
    return FitPlan(mean, variance, classifier, given)


def load_into(module: nn.Module, checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Put a checkpoint's weights into a module.

    Args:
        name: name of the checkpoint in the error message.
    Returns:
        The checkpoint.
    Raises:
        CheckpointError: if the weights belong to another network.
    """
    try:
        module.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name} holds the weights of another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    return checkpoint


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
    with entry.lock():
        checkpoint = entry.load()
        if checkpoint is None:
            log.info("%s: fitting (will be kept as %s)", kind, entry.path)
            if calibrated:
                _calibrate(run)
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
    return load_into(module, checkpoint, f"cache_dir = {config.cache_dir}")


def _stage(run: Run, kind: Kind) -> tuple[Stage, str]:
    """The stage that trains weights of a kind, and its name for the user."""
    config, parts = run.config, run.parts
    lr = config.variance_lr if kind == "variance" else None
    own = {} if lr is None else {"lr": lr}
    settings = StageSettings(
        instantiate(config.optimizer, **own), config.warmup_steps, config.cooldown, config.seed, config.label_dropout
    )
    if kind == "mean":
        return MeanStage(parts.denoiser, settings), "1/3 mean network"
    if kind == "variance":
        assert isinstance(parts.strategy, Trained)
        stage = VarianceStage(parts.denoiser, parts.strategy, settings)
        return stage, f"2/3 variance ({type(parts.strategy).__name__})"
    assert parts.guidance is not None
    assert parts.guidance.classifier is not None
    return ClassifierStage(parts.denoiser, parts.guidance.classifier, settings), "classifier"


def _calibrate(run: Run) -> None:
    parts, strategy = run.parts, run.parts.strategy
    assert isinstance(strategy, Calibrated)
    with run.machine.training() as device:
        clean, labels = parts.calibration(strategy.num_images, device)
        batches = torch.split(clean, parts.data.batch_size)
        strategy.calibrate(parts.denoiser.to(device).eval(), batches, run.config.seed, labels)


def fit_trajectory(run: Run) -> None:
    """Fit a trajectory that depends on the model, fix the times, and fit a sampler to them.

    Takes seconds, so it is not cached.
    """
    config, parts, trajectory = run.config, run.parts, run.parts.trajectory
    with config_errors("trajectory"), run.machine.training() as device:
        if trajectory.num_images:
            clean, labels = parts.calibration(trajectory.num_images, device)
            denoiser, strategy = parts.denoiser.to(device).eval(), parts.strategy.to(device).eval()
            batches = list(torch.split(clean, config.sample_batch_size))
            trajectory.fit(denoiser, strategy, batches, derive_seed(config.seed, Stream.TRAJECTORY), labels)
        parts.times  # noqa: B018 (computed once, and refused here)
    sampler = parts.sampler
    if sampler.num_images:
        with config_errors("sampler"), run.machine.training() as device:
            clean, labels = parts.calibration(sampler.num_images, device)
            denoiser, strategy = parts.denoiser.to(device).eval(), parts.strategy.to(device).eval()
            seed = derive_seed(config.seed, Stream.TRAJECTORY)
            sampler.fit(denoiser, strategy, parts.times, [clean], seed, labels)


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
    keep = ResumePoint(entry.resume_folder, config.checkpoint_every)
    callbacks = make_callbacks(config, parts, entry.identity)
    steps = config.variance_steps if stage.name == "variance" else None
    own = {} if steps is None else {"max_steps": steps}
    trainer = run.trainer(logger=loggers, callbacks=[*callbacks, StageProgressBar(description), keep], **own)
    found = _resumable(entry.resume_folder)
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.resume(stage.name, 0 if found is None else found[1])
    try:
        with patient():
            trainer.fit(
                stage,
                datamodule=DataModule(parts.data, stage.labelled),
                ckpt_path=None if found is None else found[0],
                weights_only=True,
            )
    except SIGTERMException:
        raise Terminated(_stopped(description, trainer)) from None
    except SystemExit:  # how Lightning ends on Ctrl+C
        raise KeyboardInterrupt(f"{description}; the same command continues from the last checkpoint") from None
    if trainer.global_step < trainer.max_steps:  # Lightning ends without an exception, for example at trainer.max_time
        raise Unfinished(_stopped(description, trainer))


def _stopped(description: str, trainer: Trainer) -> str:
    return (
        f"{description}: stopped at step {trainer.global_step:,} of {trainer.max_steps:,}: repeat the command to go on"
    )


def _resumable(folder: Path) -> tuple[Path, int] | None:
    """The point from which an interrupted fit goes on, and its step."""
    path = folder / "resume.ckpt"
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not verify checksums
                raise zipfile.BadZipFile
        step = int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # damaged files make the reader raise almost any exception
        log.warning("%s cannot be read (%s): starting from the first step", path, type(error).__name__)
        return None
    log.info("resuming from step %d", step)
    return path, step
