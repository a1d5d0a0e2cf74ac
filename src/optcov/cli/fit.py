"""The fits of a run, each done once and found again by what determined it."""

from __future__ import annotations

import logging
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import DictConfig
from torch import Tensor, nn

from optcov.cli.build import Parts
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.run_folder import choices, sweep_folder
from optcov.cli.tracking import Tracking
from optcov.files import write_atomically
from optcov.report import plot_variance
from optcov.seeds import Stream, derive_seed
from optcov.training import (
    Checkpoint,
    CheckpointError,
    ClassifierStage,
    Entry,
    MeanStage,
    Stage,
    StageProgressBar,
    VarianceStage,
)
from optcov.training.store import FORMAT, Identity, Kind, first_process, identity_key
from optcov.variance.base import VarianceStrategy
from optcov.variance.curve import num_curve_images, variance_curve

log = logging.getLogger(__name__)

# keys of data that say where and how, not what; what root holds is in DataModule.identity
NOT_IDENTITY = ("root", "num_workers", "cache_dir", "download", "mirrors", "checksums", "skip_corrupt")
OPTIMIZER_NOT_IDENTITY = ("fused", "foreach")  # the same steps, sooner
TRAINER_IDENTITY = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes")
NETWORK = ("model", "schedule", "parameterization", "time_offset")  # what a checkpoint must share with a config


def mean_identity(config: dict[str, Any], num_classes: int | None = None) -> Identity:
    """Everything that determines a trained mean network, from the resolved config and the classes it knows."""
    return {key: config[key] for key in NETWORK} | _classes_identity(config, num_classes) | _training_identity(config)


def _classes_identity(config: dict[str, Any], num_classes: int | None) -> Identity:
    """Nothing for an unconditional network, so that its identity is what it was before there were others."""
    return {} if num_classes is None else {"num_classes": num_classes, "label_dropout": config["label_dropout"]}


def _training_identity(config: dict[str, Any]) -> Identity:
    return {
        "format": FORMAT,
        "data": {key: value for key, value in config["data"].items() if key not in NOT_IDENTITY},
        "trainer": {key: config["trainer"].get(key) for key in TRAINER_IDENTITY},
        "ema": config["callbacks"].get("ema"),
        "optimizer": {key: value for key, value in config["optimizer"].items() if key not in OPTIMIZER_NOT_IDENTITY},
        **{key: config[key] for key in ("warmup_steps", "seed")},
    }


@dataclass(frozen=True)
class Plan:
    """What determines the fits of a run, and the checkpoints it was given instead.

    Args:
        mean, variance, classifier: the identities; None where there is nothing to fit.
        given: loaded into the run's modules already.
    """

    mean: Identity | None
    variance: Identity | None
    classifier: Identity | None
    given: dict[Kind, Checkpoint]


def plan(cfg: DictConfig, config: dict[str, Any], parts: Parts) -> Plan:
    """Work out what is to be fitted, and load the checkpoints that were given instead; nothing is written.

    Args:
        cfg, config: composed, and resolved.
        parts: whose denoiser and strategy take given weights.
    Raises:
        CheckpointError: if a given checkpoint can not be used.
    """
    config = config | {"data": config["data"] | parts.data.identity()}  # with what the files hold
    given: dict[Kind, Checkpoint] = {}
    num_classes = parts.denoiser.num_classes
    mean = mean_identity(config, num_classes) if list(parts.denoiser.parameters()) else None
    if mean is not None and cfg.mean_ckpt is not None:
        given["mean"] = Checkpoint.load(Path(cfg.mean_ckpt), "mean", "mean_ckpt")
        for key in NETWORK:
            if given["mean"].identity.get(key) != mean[key]:
                other = difference(key, given["mean"].identity.get(key), mean[key])
                raise CheckpointError(
                    f"mean_ckpt = {cfg.mean_ckpt} was trained with {other}: "
                    f"give the {key} it was trained with, or leave mean_ckpt out to train anew"
                )
        if given["mean"].identity.get("num_classes") != num_classes:
            theirs, ours = (
                "without classes" if count is None else f"with {count} classes"
                for count in (given["mean"].identity.get("num_classes"), num_classes)
            )
            raise CheckpointError(
                f"mean_ckpt = {cfg.mean_ckpt} was trained {theirs}, not {ours}: set "
                f"conditional={str(num_classes is None).lower()}, or leave mean_ckpt out to train anew"
            )
        _refuse_untrained_null_label(parts, given["mean"], f"mean_ckpt = {cfg.mean_ckpt}")
        mean = given["mean"].identity
        _load_into(parts.denoiser, given["mean"], f"mean_ckpt = {cfg.mean_ckpt}")
    classifier = _plan_classifier(cfg, config, parts, given)
    if parts.strategy.fitting == "none":
        return Plan(mean, None, classifier, given)
    classes = _classes_identity(config, num_classes)
    network = {key: config[key] for key in NETWORK} | classes if mean is None else identity_key(mean)
    variance = {"mean": network, "var": config["var"], **_training_identity(config)}
    if classes:
        variance["label_dropout"] = config["label_dropout"]
    if cfg.var_ckpt is not None:
        given["variance"] = Checkpoint.load(Path(cfg.var_ckpt), "variance", "var_ckpt")
        for key, what in (("mean", "another mean network"), ("var", "other settings of var")):
            if given["variance"].identity.get(key) != variance[key]:
                raise CheckpointError(
                    f"var_ckpt = {cfg.var_ckpt} was fitted to {what}: give the one fitted here, "
                    "or leave var_ckpt out to fit anew"
                )
        if parts.strategy.fitting == "train":
            _refuse_untrained_null_label(parts, given["variance"], f"var_ckpt = {cfg.var_ckpt}")
        _load_into(parts.strategy, given["variance"], f"var_ckpt = {cfg.var_ckpt}")
    return Plan(mean, variance, classifier, given)


def _refuse_untrained_null_label(parts: Parts, checkpoint: Checkpoint, name: str) -> None:
    if parts.guidance is not None and parts.guidance.uses_null_label and checkpoint.identity.get("label_dropout") == 0:
        raise CheckpointError(
            f"{name} was trained with label_dropout = 0 and knows no null label, which guidance = classifier_free "
            "wants: give one trained with label_dropout=0.1, or set guidance.weight=1"
        )


def _plan_classifier(
    cfg: DictConfig, config: dict[str, Any], parts: Parts, given: dict[Kind, Checkpoint]
) -> Identity | None:
    if parts.guidance is None or parts.guidance.classifier is None:
        return None
    asked = {"classifier": config["guidance"]["classifier"], "schedule": config["schedule"]}
    if cfg.classifier_ckpt is not None:
        given["classifier"] = Checkpoint.load(Path(cfg.classifier_ckpt), "classifier", "classifier_ckpt")
        for key in asked:
            if given["classifier"].identity.get(key) != asked[key]:
                other = difference(key, given["classifier"].identity.get(key), asked[key])
                raise CheckpointError(
                    f"classifier_ckpt = {cfg.classifier_ckpt} was trained with {other}: "
                    "give what it was trained with, or leave classifier_ckpt out to train anew"
                )
        _load_into(parts.guidance.classifier, given["classifier"], f"classifier_ckpt = {cfg.classifier_ckpt}")
    return asked | _training_identity(config)


def fit_mean(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Stage 1: put the trained weights into ``parts.denoiser``.

    Returns:
        The checkpoint, or None for a network without weights.
    """

    def train(entry: Entry) -> None:
        optimizer = instantiate(cfg.optimizer)
        stage = MeanStage(parts.denoiser, optimizer, cfg.warmup_steps, cfg.seed, cfg.label_dropout)
        run_stage(cfg, stage, parts, loggers, entry, "1/3 mean network")

    if plan.mean is None or "mean" in plan.given:
        return plan.given.get("mean")
    return _find_or_fit(cfg, "mean", plan.mean, parts.denoiser, train)


def fit_variance(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Stage 2: put what was fitted into ``parts.strategy``, on the mean network that is in ``parts.denoiser``.

    Returns:
        The checkpoint, or None for a strategy with nothing to fit.
    """
    strategy = parts.strategy

    def train(entry: Entry) -> None:
        optimizer = instantiate(cfg.optimizer)
        stage = VarianceStage(parts.denoiser, strategy, optimizer, cfg.warmup_steps, cfg.seed, cfg.label_dropout)
        run_stage(cfg, stage, parts, loggers, entry, f"2/3 variance ({type(strategy).__name__})")

    def calibrate(entry: Entry) -> None:
        trainer = make_trainer(cfg)
        device = trainer.strategy.root_device
        parts.denoiser.to(device).eval()
        clean = parts.data.calibration(strategy.num_images).to(device)
        with trainer.precision_plugin.forward_context():
            batches = torch.split(clean, parts.data.batch_size)
            labels = _calibration_labels(parts, strategy.num_images, device)
            strategy.calibrate(parts.denoiser, batches, cfg.seed, labels)

    if plan.variance is None or "variance" in plan.given:
        return plan.given.get("variance")
    fit = train if strategy.fitting == "train" else calibrate
    return _find_or_fit(cfg, "variance", plan.variance, strategy, fit)


def fit_classifier(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Put a trained classifier into ``parts.guidance``.

    Returns:
        The checkpoint, or None for guidance without one.
    """
    classifier = parts.guidance.classifier if parts.guidance is not None else None

    def train(entry: Entry) -> None:
        assert classifier is not None
        stage = ClassifierStage(parts.denoiser, classifier, instantiate(cfg.optimizer), cfg.warmup_steps, cfg.seed)
        run_stage(cfg, stage, parts, loggers, entry, "classifier")

    if classifier is None or plan.classifier is None or "classifier" in plan.given:
        return plan.given.get("classifier")
    return _find_or_fit(cfg, "classifier", plan.classifier, classifier, train)


def _calibration_labels(parts: Parts, count: int, device: torch.device) -> Tensor | None:
    """The labels of ``parts.data.calibration(count)``, where the mean network knows classes."""
    return None if parts.denoiser.num_classes is None else parts.data.calibration_labels(count).to(device)


def fit_trajectory(cfg: DictConfig, parts: Parts) -> None:
    """Let a trajectory that depends on the fitted model see it; seconds, so that nothing is kept but the times."""
    trajectory = parts.trajectory
    if trajectory.num_images == 0:
        return
    trainer = make_trainer(cfg)
    device = trainer.strategy.root_device
    clean = parts.data.calibration(trajectory.num_images).to(device)
    with refusals("trajectory"), trainer.precision_plugin.forward_context():
        trajectory.fit(
            parts.denoiser.to(device).eval(),
            parts.strategy.to(device).eval(),
            list(torch.split(clean, cfg.sample_batch_size)),
            derive_seed(cfg.seed, Stream.TRAJECTORY),
            _calibration_labels(parts, trajectory.num_images, device),
        )


def write_variance_curve(cfg: DictConfig, parts: Parts, folder: Path) -> None:
    """Write ``variance.csv`` and ``variance.png``: what samples will see, on a few training images; seconds."""
    import pandas as pd

    trainer = make_trainer(cfg)
    device = trainer.strategy.root_device
    count = num_curve_images(math.prod(parts.denoiser.data_shape))
    images, labels = parts.data.calibration(count).to(device), _calibration_labels(parts, count, device)
    for module in filter(None, (parts.denoiser, parts.strategy, parts.guidance)):
        module.to(device).eval()
    with trainer.precision_plugin.forward_context():
        curve = variance_curve(*parts.bound(labels), images, 1 / parts.sampler.num_steps, cfg.seed)
    if len(curve["t"]):  # a chain of one step has none between its ends
        frame = pd.DataFrame({name: values.numpy() for name, values in curve.items()})
        write_atomically(folder / "variance.csv", frame.to_csv(index=False))
        plot_variance({choices()["var"]: frame}, folder / "variance.png")


def make_trainer(cfg: DictConfig, **arguments: Any) -> Trainer:
    """Lightning's Trainer of the config, with no more output than a run wants.

    Raises:
        ConfigError: if the machine or the versions can not do what the config asks, or a sweep can not.
    """
    settings: dict[str, Any] = {
        "logger": False,
        "callbacks": [],
        "max_epochs": -1,
        "enable_model_summary": False,
    } | arguments
    settings["enable_checkpointing"] = any(isinstance(each, ModelCheckpoint) for each in settings["callbacks"])
    settings["enable_progress_bar"] = any(isinstance(each, ProgressBar) for each in settings["callbacks"])
    with refusals("trainer"):
        trainer: Trainer = instantiate(cfg.trainer, **settings)
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        raise ConfigError(
            f"trainer.precision = {cfg.trainer.precision} would keep weights or schedules in half or double precision: "
            "set 32-true, bf16-mixed or 16-mixed"
        )
    if trainer.max_steps < 1:
        raise ConfigError(f"trainer.max_steps = {trainer.max_steps} trains nothing: give at least 1")
    if trainer.strategy.root_device.type == "mps":
        raise ConfigError(
            f"trainer.accelerator = {cfg.trainer.accelerator} finds Apple's MPS, which has no float64 for schedules: "
            "set trainer=cpu"
        )
    if sweep_folder() is not None and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise ConfigError(
            f"trainer.strategy = {cfg.trainer.strategy} would start the whole sweep again in each of its processes: "
            "set trainer.strategy=ddp_fork, or start the jobs one by one"
        )
    return trainer


def make_callbacks(cfg: DictConfig, parts: Parts) -> list[Callback]:
    """Lightning callbacks of the config, for one stage.

    Raises:
        ConfigError: if a run of these parts can not be tracked.
    """
    with refusals("callbacks"):
        callbacks: list[Callback] = [instantiate(callback) for callback in cfg.callbacks.values()]
        for callback in callbacks:
            if isinstance(callback, Tracking):
                callback.check(parts)
    return callbacks


def _find_or_fit(
    cfg: DictConfig, kind: Kind, identity: Identity, module: nn.Module, fit: Callable[[Entry], None]
) -> Checkpoint:
    entry = Entry(Path(cfg.cache_dir), kind, identity)
    with entry.lock():
        checkpoint = entry.load()
        if checkpoint is None:
            log.info("%s: fitting (will be kept as %s)", kind, entry.path)
            fit(entry)
            checkpoint = Checkpoint(kind, identity, module.state_dict())
            if first_process():
                checkpoint.save(entry.path)
                shutil.rmtree(entry.resume_folder, ignore_errors=True)
            return checkpoint
    log.info("%s: found %s", kind, entry.path)
    is_tracked = kind == "mean" or (isinstance(module, VarianceStrategy) and module.fitting == "train")
    if "tracking" in cfg.callbacks and is_tracked:
        log.info("%s: fitted before, so that there is nothing to track; another cache_dir fits it again", kind)
    return _load_into(module, checkpoint, f"cache_dir = {cfg.cache_dir}")


def run_stage(
    cfg: DictConfig, stage: Stage, parts: Parts, loggers: list[Logger], entry: Entry, description: str
) -> None:
    """Train a stage to its last step, from where an interrupted run left it; the averaged weights are in it then."""
    keep = ModelCheckpoint(
        entry.resume_folder, "resume", every_n_train_steps=cfg.checkpoint_every, enable_version_counter=False
    )
    parts.data.labelled = stage.labelled
    callbacks = make_callbacks(cfg, parts)
    for callback in callbacks:
        if isinstance(callback, Tracking):
            callback.attach(cfg, parts, entry.identity)
    trainer = make_trainer(cfg, logger=loggers, callbacks=[*callbacks, StageProgressBar(description), keep])
    try:
        trainer.fit(stage, datamodule=parts.data, ckpt_path=_resumable(entry.resume_folder), weights_only=True)
    except SystemExit:  # how Lightning ends on Ctrl+C
        raise KeyboardInterrupt(f"{description}; the same command continues from the last checkpoint") from None


def _resumable(folder: Path) -> Path | None:
    path = folder / "resume.ckpt"
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at checksums
                raise zipfile.BadZipFile
        step = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # whatever a damaged file makes the reader say
        log.warning("%s can not be read (%s): starting from the first step", path, type(error).__name__)
        return None
    log.info("resuming from step %d", step)
    return path


def _load_into(module: nn.Module, checkpoint: Checkpoint, name: str) -> Checkpoint:
    try:
        module.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name} holds the weights of another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    return checkpoint


def difference(key: str, theirs: Any, ours: Any) -> str:
    """The first setting in which two configs differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):  # _target_ comes first
            if theirs.get(name) != ours.get(name):
                return difference(f"{key}.{name}", theirs.get(name), ours.get(name))
    return f"{key} = {theirs}, not {ours}"
