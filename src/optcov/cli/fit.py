"""The two fits of a run, each done once and found again by what determined it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import DictConfig
from torch import nn

from optcov.cli.build import Parts
from optcov.cli.dashboard import sweep_folder
from optcov.cli.errors import ConfigError, refusals
from optcov.seeds import derive_seed
from optcov.training import (
    Checkpoint,
    CheckpointError,
    Entry,
    MeanStage,
    Stage,
    StageProgressBar,
    VarianceStage,
)
from optcov.training.store import FORMAT, Identity, Kind, first_process

log = logging.getLogger(__name__)

NOT_IDENTITY = ("root", "num_workers")  # keys of data that say where, not what
TRAINER_IDENTITY = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes")
NETWORK = ("model", "schedule", "parameterization", "time_offset")  # what a checkpoint must share with a config


def mean_identity(config: dict[str, Any]) -> Identity:
    """Everything that determines a trained mean network, from the resolved config."""
    return {key: config[key] for key in NETWORK} | _training_identity(config)


def _training_identity(config: dict[str, Any]) -> Identity:
    return {
        "format": FORMAT,
        "data": {key: value for key, value in config["data"].items() if key not in NOT_IDENTITY},
        "trainer": {key: config["trainer"].get(key) for key in TRAINER_IDENTITY},
        "ema": config["callbacks"].get("ema"),
        **{key: config[key] for key in ("optimizer", "warmup_steps", "seed")},
    }


def fit_mean(cfg: DictConfig, config: dict[str, Any], parts: Parts, loggers: list[Logger]) -> Checkpoint | None:
    """Stage 1: put the trained weights into ``parts.denoiser``.

    Returns:
        The checkpoint, or None for a network without weights.
    Raises:
        CheckpointError: if ``mean_ckpt`` can not be used.
    """
    if not list(parts.denoiser.parameters()):
        return None
    identity = mean_identity(config)

    def train(entry: Entry) -> None:
        stage = MeanStage(parts.denoiser, instantiate(cfg.optimizer), cfg.warmup_steps, cfg.seed)
        run_stage(cfg, stage, parts, loggers, entry, "1/3 mean network")

    if cfg.mean_ckpt is None:
        return _find_or_fit(cfg, "mean", identity, parts.denoiser, train)
    checkpoint = Checkpoint.load(Path(cfg.mean_ckpt), "mean", "mean_ckpt")
    for key in NETWORK:
        if checkpoint.identity[key] != identity[key]:
            difference = _difference(key, checkpoint.identity[key], identity[key])
            raise CheckpointError(
                f"mean_ckpt = {cfg.mean_ckpt} was trained with {difference}: "
                f"give the {key} it was trained with, or leave mean_ckpt out to train anew"
            )
    return _load_into(parts.denoiser, checkpoint, f"mean_ckpt = {cfg.mean_ckpt}")


def fit_variance(
    cfg: DictConfig, config: dict[str, Any], parts: Parts, mean: Checkpoint | None, loggers: list[Logger]
) -> Checkpoint | None:
    """Stage 2: put what was fitted into ``parts.strategy``.

    Args:
        mean: what :func:`fit_mean` returned; a variance belongs to one mean network.
    Returns:
        The checkpoint, or None for a strategy with nothing to fit.
    Raises:
        CheckpointError: if ``var_ckpt`` can not be used.
    """
    strategy = parts.strategy
    if strategy.fitting == "none":
        return None
    network = {key: config[key] for key in NETWORK} if mean is None else mean.key
    identity = {"mean": network, "var": config["var"], **_training_identity(config)}
    name = config["var"]["_target_"].rpartition(".")[2]

    def train(entry: Entry) -> None:
        stage = VarianceStage(parts.denoiser, strategy, instantiate(cfg.optimizer), cfg.warmup_steps, cfg.seed)
        run_stage(cfg, stage, parts, loggers, entry, f"2/3 variance ({name})")

    def calibrate(entry: Entry) -> None:
        trainer = make_trainer(cfg)
        device = trainer.strategy.root_device
        parts.denoiser.to(device).eval()
        clean = parts.data.calibration(strategy.num_images).to(device)
        with trainer.precision_plugin.forward_context():
            strategy.calibrate(
                parts.denoiser, list(torch.split(clean, cfg.sample_batch_size)), derive_seed(cfg.seed, 2)
            )

    fit = train if strategy.fitting == "train" else calibrate
    if cfg.var_ckpt is None:
        return _find_or_fit(cfg, "variance", identity, strategy, fit)
    checkpoint = Checkpoint.load(Path(cfg.var_ckpt), "variance", "var_ckpt")
    for key, what in (("mean", "another mean network"), ("var", "other settings of var")):
        if checkpoint.identity[key] != identity[key]:
            raise CheckpointError(
                f"var_ckpt = {cfg.var_ckpt} was fitted to {what}: give the one fitted here, "
                "or leave var_ckpt out to fit anew"
            )
    return _load_into(strategy, checkpoint, f"var_ckpt = {cfg.var_ckpt}")


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
            derive_seed(cfg.seed, 5),
        )


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
    return _load_into(module, checkpoint, f"cache_dir = {cfg.cache_dir}")


def run_stage(
    cfg: DictConfig, stage: Stage, parts: Parts, loggers: list[Logger], entry: Entry, description: str
) -> None:
    """Train a stage to its last step, from where an interrupted run left it; the averaged weights are in it then."""
    keep = ModelCheckpoint(
        entry.resume_folder, "resume", every_n_train_steps=cfg.checkpoint_every, enable_version_counter=False
    )
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    trainer = make_trainer(cfg, logger=loggers, callbacks=[*callbacks, StageProgressBar(description), keep])
    if cfg.compile:
        parts.denoiser.network.compile()
    try:
        trainer.fit(stage, datamodule=parts.data, ckpt_path=_resumable(entry.resume_folder), weights_only=True)
    except SystemExit:  # how Lightning ends on Ctrl+C
        raise KeyboardInterrupt(description) from None


def _resumable(folder: Path) -> Path | None:
    path = folder / "resume.ckpt"
    if not path.is_file():
        return None
    try:
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


def _difference(key: str, theirs: Any, ours: Any) -> str:
    """The first setting in which two configs differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in theirs.keys() | ours.keys():
            if theirs.get(name) != ours.get(name):
                return _difference(f"{key}.{name}", theirs.get(name), ours.get(name))
    return f"{key} = {theirs}, not {ours}"
