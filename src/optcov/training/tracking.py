"""Scores during training: every few steps of each stage, the averaged weights draw a few samples, which are scored."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from optcov.keys import Config
from optcov.metric import Metric, Reference, refer_all, score_samples
from optcov.parts import Parts
from optcov.ranges import PositiveCount
from optcov.report import picture
from optcov.sampler import DDIMSampler, NoiseStream, Sampler
from optcov.seeds import Stream, derive_seed
from optcov.training import EMA, Checkpoint, MeanStage, Stage, VarianceStage
from optcov.training.store import Identity
from optcov.training.wandb import WandbRun
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Trained, VarianceStrategy
from optcov.variance.fixed import BetaTilde

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """Everything that tracking needs to know about a run.

    Args:
        parts: the objects of the run.
        reference: the images with which samples are compared.
        identity: everything that determines the weights of the stage.
        scored: everything that determines a score, given the weights; only scores with equal values are compared.
        seed: seed of the tracked samples.
        batch_size: samples per network call.
        folder: the run's folder.
    """

    parts: Parts
    reference: Reference
    identity: Identity
    scored: dict[str, Any]
    seed: int
    batch_size: int
    folder: Path


@dataclass(frozen=True)
class Tracking:
    """Settings of a `Tracker`.

    Args:
        every_n_steps: optimizer steps between two scores, at least 1.
        num_samples: samples for each score, at least 2.
        mean_steps: DDIM steps for scoring the mean network, at least 1.
    Raises:
        ValueError: if an argument is out of range.
    """

    every_n_steps: PositiveCount = 500
    num_samples: PositiveCount = 500
    mean_steps: PositiveCount = 10

    def __post_init__(self) -> None:
        for key, least in (("every_n_steps", 1), ("num_samples", 2), ("mean_steps", 1)):
            if (value := getattr(self, key)) < least:
                raise ValueError(f"callbacks.tracking.{key} must be at least {least} (got {value}): give more")

    def check(self, parts: Parts) -> None:
        """Refuse a run that cannot be tracked.

        Raises:
            ValueError: if it cannot; the message names the key and what is possible.
        """
        if not _of_samples(parts):
            raise ValueError("metric must score samples for callbacks=tracking (got none): set metric=fd_pixel")
        for metric in _of_samples(parts):
            try:
                metric.check(Reference(parts.data.reference()), self.num_samples)
            except ValueError as error:
                raise ValueError(f"callbacks.tracking.num_samples = {self.num_samples}: {error}") from error
        if self.mean_steps > parts.denoiser.schedule.num_steps:
            raise ValueError(
                f"callbacks.tracking.mean_steps must be at most the {parts.denoiser.schedule.num_steps} steps of the "
                f"schedule (got {self.mean_steps}): give fewer"
            )
        if parts.sampler.num_images:
            raise ValueError(
                "sampler.noise must be none or full for callbacks=tracking (got one that is fitted after training): "
                "set sampler.noise=full, or leave tracking out"
            )
        if parts.trajectory.num_images and isinstance(parts.strategy, Trained):
            raise ValueError(
                f"trajectory must not need a fit for callbacks=tracking (got {type(parts.trajectory).__name__}, which "
                "is fitted after training): choose another trajectory, or leave tracking out"
            )

    def tracker(self, config: Config, parts: Parts, identity: Identity) -> Tracker:
        """Make the callback for one stage of a run.

        Args:
            config, parts: config and objects of the run.
            identity: everything that determines the weights of the stage.
        """
        scored: dict[str, Any] = {key: getattr(config, key) for key in ("metric", "sampler", "trajectory")}
        scored |= {"labels": parts.classes, "num_samples": self.num_samples, "mean_steps": self.mean_steps}
        seed, folder = derive_seed(config.seed, Stream.TRACKING), Path(config.output_dir)
        reference = Reference(parts.data.reference(), config.reference_dir)
        return Tracker(self, TrackedRun(parts, reference, identity, scored, seed, config.sample_batch_size, folder))


class Tracker(Callback):
    """Draws samples every few steps and after the last, scores them, and keeps the weights with the best score.

    The mean network is scored with DDIM (eta = 0) on even times, a variance with the run's own sampler and trajectory,
    both in the precision of the trainer.  A class-conditional network draws the classes in ``labels``, without
    guidance.  Every score uses the same noise, which differs from that of the run's samples.  The run's metrics of
    samples give the scores, and the first of them decides which weights are best.  Tracking does not affect training:
    a tracked run ends with bitwise the same weights as an untracked one.

    Args:
        settings: how often to score, and with how many samples.
        run: the run to track.
    """

    def __init__(self, settings: Tracking, run: TrackedRun) -> None:
        self.settings, self.run = settings, run
        self._step, self._referred = 0, False
        self._best: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self._best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["scored"] == self.run.scored:  # otherwise the scores are not comparable
            self._best = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self._best and trainer.is_global_zero:  # of the interrupted run, which may have had another folder
            self._save_best(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, (MeanStage, VarianceStage)):
            return
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        if self._step % self.settings.every_n_steps and self._step != trainer.max_steps:
            return
        started = time.monotonic()
        with _averaged(trainer, pl_module), _evaluating(pl_module):
            samples = self._draw(trainer, pl_module)
            if not trainer.is_global_zero:
                return
            try:
                images = self.run.parts.data.levels(self.run.parts.data.finish(samples))
            except ValueError as error:  # a network that diverges may recover
                log.warning("%s: step %d cannot be scored: %s", pl_module.name, self._step, error)
                return
            self._log(trainer, pl_module, images, started)

    def _draw(self, trainer: Trainer, stage: Stage) -> Tensor:
        """Draw samples, float ``[num_samples, *data_shape]`` on the CPU; the processes share the work."""
        strategy: VarianceStrategy
        sampler: Sampler
        if isinstance(stage, VarianceStage):
            strategy, sampler, times = stage.strategy, self.run.parts.sampler, self.run.parts.times
        else:
            strategy, sampler = BetaTilde(stage.denoiser), DDIMSampler(self.settings.mean_steps, eta=0.0)
            times = EvenTrajectory().times(stage.denoiser.schedule, self.settings.mean_steps)
        share = -(-self.settings.num_samples // trainer.world_size)  # equal shares; the last may be too large
        mine = range(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        labels = None
        if stage.denoiser.num_classes is not None:
            labels = self.run.parts.labels(share * trainer.world_size, self.run.seed)
        drawn = []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for start in range(0, share, self.run.batch_size):
                indices = mine[start : start + self.run.batch_size]
                noise = NoiseStream(self.run.seed, indices, stage.denoiser.data_shape, stage.device)
                asked = None if labels is None else labels[indices.start : indices.stop].to(stage.device)
                drawn.append(sampler.sample(stage.denoiser, strategy, times, noise, condition=asked))
        images = stage.all_gather(stage.denoiser.data_range.to_unit(torch.cat(drawn)))
        assert isinstance(images, Tensor)
        return images.reshape(-1, *stage.denoiser.data_shape)[: self.settings.num_samples].cpu()

    def _scores(self, images: Tensor, device: torch.device) -> dict[str, float]:
        metrics = _of_samples(self.run.parts)
        if not self._referred:
            refer_all(metrics, self.run.reference, device)
        self._referred = True
        return {name: score.value for _, name, score in score_samples(metrics, [images], len(images))}

    def _log(self, trainer: Trainer, stage: Stage, images: Tensor, started: float) -> None:
        scores = self._scores(images, stage.device)
        decisive, score = next(iter(scores.items()))
        better = not self._best or score < self._best["score"]
        if self._best and _of_samples(self.run.parts)[0].higher_is_better:
            better = score > self._best["score"]
        said = f"{decisive} = {score:.4g}{', the best so far' if better else ''}"
        log.info("%s: step %d, %s (%.1f s)", stage.name, self._step, said, time.monotonic() - started)
        path = self.run.folder / "tracking" / f"{stage.name}_{self._step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(images, path, count=16)
        for logger in trainer.loggers:
            logger.log_metrics({f"track/{stage.name}/{name}": value for name, value in scores.items()}, self._step)
            if isinstance(logger, WandbRun):
                logger.log_image(f"track/{stage.name}/samples", [str(path)], self._step)
        if better:
            weights = {name: value.detach().cpu().clone() for name, value in _fitted(stage).state_dict().items()}
            self._best = {"score": score, "step": self._step, "weights": weights, "scored": self.run.scored}
            self._save_best(trainer, stage)

    def _save_best(self, trainer: Trainer, stage: LightningModule) -> None:
        assert isinstance(stage, Stage)
        step = self._best["step"]
        identity = self.run.identity if step == trainer.max_steps else self.run.identity | {"step": step}
        checkpoint = Checkpoint(stage.name, identity, self._best["weights"])
        checkpoint.save(self.run.folder / "checkpoints" / f"best_{stage.name}.safetensors")


def _of_samples(parts: Parts) -> list[Metric]:
    return [metric for metric in parts.metrics.values() if isinstance(metric, Metric)]


def _fitted(stage: Stage) -> nn.Module:
    """The module that the stage trains and that its checkpoints hold."""
    return stage.strategy if isinstance(stage, VarianceStage) else stage.denoiser


@contextmanager
def _averaged(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """Put the averaged weights into the module for the duration of a block, if the run averages weights."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                stack.enter_context(callback.averaged(stage))
        yield


@contextmanager
def _evaluating(stage: Stage) -> Iterator[None]:
    """Put every module into eval mode for the duration of a block, then restore its mode."""
    training = [module for module in stage.modules() if module.training]
    stage.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
