"""Lightning callbacks: averaged weights, and progress bars that name their stage."""

from __future__ import annotations

import logging
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from optcov.ranges import BelowOne, NonNegative
from optcov.training.checkpoint_io import CompleteFiles
from optcov.training.csv_log import MetricsCSV

log = logging.getLogger(__name__)


class EMA(Callback):
    """Exponential moving average of the trained parameters, for sampling.

    A checkpoint's ``state_dict`` holds the averaged weights; the raw weights are saved beside it, so that a resumed
    run continues both.  When fitting ends, the module holds the averaged weights.  Buffers and frozen weights are not
    averaged.

    Args:
        decay: decay of the average, in [0, 1); warms up as ``min(decay, (1 + step) / (10 + step))``.
    Raises:
        ValueError: if ``decay`` is out of range.
    """

    def __init__(self, decay: BelowOne = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must be in [0, 1) (got {decay}): give 0.999")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._step = 0
        self._resumed: dict[str, Any] | None = None

    @staticmethod
    def _trained(module: LightningModule) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the module holds the averaged weights of a checkpoint, or its initial weights
        self._average = {name: p.detach().clone() for name, p in self._trained(pl_module).items()}
        self._step = trainer.global_step
        if self._resumed is not None:
            self._load(pl_module, self._resumed)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        current = [p.detach() for p in self._trained(pl_module).values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average:
            self._load(pl_module, self._average)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["raw_weights"] = {name: state[name] for name in self._average}
        checkpoint["state_dict"] = state | self._average

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["raw_weights"]

    @contextmanager
    def averaged(self, module: LightningModule) -> Iterator[None]:
        """Put the averaged weights into the module for the duration of a block, then restore the raw ones bitwise."""
        raw = {name: p.detach().clone() for name, p in self._trained(module).items()}
        self._load(module, self._average)
        try:
            yield
        finally:
            self._load(module, raw)

    @torch.no_grad()
    def _load(self, module: LightningModule, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._trained(module).items():
            parameter.copy_(weights[name])


class PiecewiseRate(Callback):
    """The learning rate of the mean network as a piecewise linear function of the step, constant after the last.

    Args:
        steps: optimizer steps, increasing, from 0.
        factors: the learning rate at these steps, relative to the optimizer's.
    Raises:
        ValueError: if the lists do not fit together.
    """

    def __init__(self, steps: Sequence[int], factors: Sequence[NonNegative]) -> None:
        if len(steps) != len(factors) or list(steps) != sorted({0, *steps}):
            raise ValueError(
                f"callbacks.learning_rate.steps must rise from 0, one for each of the factors {list(factors)} "
                f"(got {list(steps)}): give [0, 4000] and [0.0, 1.0]"
            )
        self.steps, self.factors = list(steps), list(factors)

    def factor(self, step: int) -> float:
        """The learning rate at a step relative to the optimizer's."""
        return float(np.interp(step, self.steps, self.factors))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if getattr(pl_module, "name", "mean") != "mean":
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.factor(trainer.global_step + 1)


class ResumePoint(ModelCheckpoint):
    """Keeps ``resume.ckpt``, from which an interrupted fit goes on: every few steps, and when a fit is told to stop.

    Args:
        folder: where it is kept.
        every_n_steps: optimizer steps between two.
        before_cooldown: a file to keep as well, from which a longer fit can go on, and the step at which it is
            written, the last one that does not depend on the number of steps; None to keep none.
    """

    def __init__(self, folder: Path, every_n_steps: int, before_cooldown: tuple[Path, int] | None = None) -> None:
        super().__init__(folder, "resume", every_n_train_steps=every_n_steps, enable_version_counter=False)
        self.path, self.before_cooldown = folder / "resume.ckpt", before_cooldown

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin that the user chose
            trainer.strategy.checkpoint_io = CompleteFiles()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        step = trainer.global_step
        ends_early = (trainer.should_stop or trainer.received_sigterm) and step < trainer.max_steps
        if ends_early and step != self._last_global_step_saved:
            trainer.save_checkpoint(self.path)
            self._last_global_step_saved = step
        if self.before_cooldown is not None and self.before_cooldown[1] == step:
            trainer.save_checkpoint(self.before_cooldown[0])
            self.before_cooldown = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out paths and the time already spent (trainer.max_time holds for each command); write the log.

        The log is on disk with the row of the step at hand before the checkpoint is, or else a command that ended
        between the two would lose that row: Lightning logs a step after it has saved its checkpoint.
        """
        kept, own = checkpoint.get("callbacks", {}), ("Timer", type(self).__name__)
        checkpoint["callbacks"] = {key: value for key, value in kept.items() if not key.startswith(own)}
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs_this_step = trainer.global_step % every == 0 or trainer.should_stop
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                if logs_this_step and trainer.logged_metrics:
                    row = dict(trainer.logged_metrics) | {"epoch": trainer.current_epoch}
                    logger.log_metrics(row, trainer.global_step - 1)
                logger.save()

    def find(self) -> tuple[Path, int] | None:
        """The file from which an interrupted fit goes on, and its step; None if there is none that can be read."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        if not self.path.is_file():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                if archive.testzip() is not None:  # torch.load does not verify checksums
                    raise zipfile.BadZipFile
            step = int(torch.load(self.path, map_location="cpu", weights_only=True)["global_step"])
        except Exception as error:  # damaged files make the reader raise almost any exception
            log.warning("%s cannot be read (%s): starting from the first step", self.path, type(error).__name__)
            return None
        log.info("resuming from step %d", step)
        return self.path, step


class StageProgressBar(TQDMProgressBar):
    """A progress bar that names its stage; shown only on a terminal.

    Args:
        description: the text in front of the bar.
    """

    def __init__(self, description: str) -> None:
        super().__init__(refresh_rate=10 if sys.stderr.isatty() else 0)
        self.description = description

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.description)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
