"""Lightning's Trainer of a config, with its callbacks, and where and how precisely it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import DictConfig

from optcov.cli.build import Parts
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.run_folder import sweep_folder
from optcov.cli.tracking import Tracking
from optcov.training.store import Identity


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


def sampling_trainer(cfg: DictConfig, **arguments: Any) -> Trainer:
    """The same in the precision of sampling."""
    precision = cfg.sample_precision or cfg.trainer.precision
    return make_trainer(cfg, precision=precision, use_distributed_sampler=False, **arguments)


def root_device(cfg: DictConfig) -> torch.device:
    """Where this process computes."""
    return make_trainer(cfg).strategy.root_device


@contextmanager
def computing(trainer: Trainer) -> Iterator[torch.device]:
    """Compute as a Trainer would, in its precision, on the device that this gives."""
    with trainer.precision_plugin.forward_context():
        yield trainer.strategy.root_device


def make_callbacks(cfg: DictConfig, parts: Parts, identity: Identity) -> list[Callback]:
    """Lightning callbacks of the config, for one stage.

    Args:
        cfg: of the run.
        parts: of the run.
        identity: what determines the weights of the stage.
    Raises:
        ConfigError: if a run of these parts cannot be tracked.
    """
    with refusals("callbacks"):
        callbacks: list[Callback | Tracking] = [instantiate(callback) for callback in cfg.callbacks.values()]
        for callback in callbacks:
            if isinstance(callback, Tracking):
                callback.check(parts)
    return [each.tracker(cfg, parts, identity) if isinstance(each, Tracking) else each for each in callbacks]
