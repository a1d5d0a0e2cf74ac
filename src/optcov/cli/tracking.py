"""Scores during training: a few samples of the averaged weights, every few steps, in each stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from optcov.cli.build import Parts, reference_of
from optcov.cli.wandb import WandbRun
from optcov.data.pixels import to_uint8
from optcov.guidance import Guidance
from optcov.metric import Metric, Reference, update_all, with_count
from optcov.report import picture
from optcov.sampler import DDIMSampler, NoiseStream, Sampler
from optcov.seeds import Stream, derive_seed
from optcov.training import EMA, Checkpoint, MeanStage, Stage, VarianceStage
from optcov.training.store import Identity
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde

log = logging.getLogger(__name__)


class Tracking(Callback):
    """Draws samples every few steps and after the last, scores them, and keeps the weights that scored best.

    The mean network is tracked by DDIM (eta = 0) on even times, a variance by the run's own sampler and trajectory,
    both in the precision of the trainer.  A network that knows classes is asked for those of ``labels``, without
    guidance.  Scores are those of the run's metrics of samples; the first one decides which weights are best.  Training
    does not feel it: a tracked run ends with the weights of an untracked one, bit by bit.

    Args:
        every_n_steps: optimizer steps from one score to the next.
        num_samples: of each score, at least 2; their noise is always the same, and not that of the run's samples.
        mean_steps: steps of DDIM.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, every_n_steps: int = 500, num_samples: int = 500, mean_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.tracking.every_n_steps = {every_n_steps} is no interval: give at least 1")
        if num_samples < 2:
            raise ValueError(f"callbacks.tracking.num_samples = {num_samples} has no covariance: give at least 2")
        if mean_steps < 1:
            raise ValueError(f"callbacks.tracking.mean_steps = {mean_steps} makes no samples: give at least 1")
        self.every_n_steps, self.num_samples, self.mean_steps = every_n_steps, num_samples, mean_steps
        self._step, self._referred = 0, False
        self._best: dict[str, Any] = {}

    def check(self, parts: Parts) -> None:
        """Refuse a run that can not be tracked.

        Raises:
            ValueError: naming the key and what is possible.
        """
        if not _of_samples(parts):
            raise ValueError("callbacks=tracking scores samples, and no metric of the run does: add metric=fd_pixel")
        for metric in _of_samples(parts):
            try:
                metric.check(Reference(parts.data.reference()), self.num_samples)
            except ValueError as error:
                raise ValueError(f"callbacks.tracking.num_samples = {self.num_samples}: {error}") from error
        if self.mean_steps > parts.denoiser.schedule.num_steps:
            raise ValueError(
                f"callbacks.tracking.mean_steps = {self.mean_steps} does not fit a schedule of "
                f"{parts.denoiser.schedule.num_steps} steps: give at most as many"
            )
        if parts.trajectory.num_images and parts.strategy.fitting == "train":
            raise ValueError(
                f"callbacks=tracking can not use trajectory = {type(parts.trajectory).__name__}, which is fitted "
                "once training has ended: choose another trajectory, or leave tracking out"
            )

    def attach(self, cfg: DictConfig, parts: Parts, identity: Identity) -> None:
        """Say which run this is, and what determines the weights it trains."""
        self.parts, self.identity = parts, identity
        self.seed, self.batch_size = derive_seed(cfg.seed, Stream.TRACKING), cfg.sample_batch_size
        self.folder, self.reference = Path(cfg.output_dir), reference_of(cfg, parts.data)
        scored = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("metric", "sampler", "trajectory")}
        scored["labels"] = parts.classes
        self._scored = scored | {"num_samples": self.num_samples, "mean_steps": self.mean_steps}

    def state_dict(self) -> dict[str, Any]:
        return self._best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["scored"] == self._scored:  # another score would not compare
            self._best = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self._best and trainer.is_global_zero:  # of the interrupted run, whose folder may be another
            self._save_best(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, (MeanStage, VarianceStage)):
            return
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        if self._step % self.every_n_steps and self._step != trainer.max_steps:
            return
        started = time.monotonic()
        with _averaged(trainer, pl_module), _evaluating(pl_module):
            samples = self._draw(trainer, pl_module)
            if not trainer.is_global_zero:
                return
            try:
                images = to_uint8(samples)
            except ValueError as error:  # a network that goes astray may come back
                log.warning("%s: step %d can not be scored: %s", pl_module.name, self._step, error)
                return
            self._log(trainer, pl_module, images, started)

    def _draw(self, trainer: Trainer, stage: Stage) -> Tensor:
        """Float ``[num_samples, *data_shape]`` on the CPU; the processes share the work."""
        strategy: VarianceStrategy
        sampler: Sampler
        if isinstance(stage, VarianceStage):
            strategy, sampler, times = stage.strategy, self.parts.sampler, self.parts.times
        else:
            strategy, sampler = BetaTilde(stage.denoiser), DDIMSampler(self.mean_steps, eta=0.0)
            times = EvenTrajectory().times(stage.denoiser.schedule, self.mean_steps)
        share = -(-self.num_samples // trainer.world_size)  # equal shares: the last samples may be drawn in vain
        mine = range(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        labels = None  # of a network that knows classes, which is tracked without guidance
        if stage.denoiser.num_classes is not None:
            labels = self.parts.labels(share * trainer.world_size, self.seed)
        drawn = []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for start in range(0, share, self.batch_size):
                indices = mine[start : start + self.batch_size]
                noise = NoiseStream(self.seed, indices, stage.denoiser.data_shape, stage.device)
                asked = None if labels is None else labels[indices.start : indices.stop].to(stage.device)
                given = Guidance(stage.denoiser).bind(stage.denoiser, strategy, asked)
                drawn.append(sampler.sample(*given, times, noise))
        images = stage.all_gather(torch.cat(drawn))
        assert isinstance(images, Tensor)
        return images.reshape(-1, *stage.denoiser.data_shape)[: self.num_samples].cpu()

    def _scores(self, images: Tensor, device: torch.device) -> dict[str, float]:
        metrics = _of_samples(self.parts)
        for metric in metrics:
            if not self._referred:
                metric.to(device).refer_to(self.reference)
            metric.reset()
        self._referred = True
        update_all(metrics, images)
        found = [named for metric in metrics for named in metric.compute().items()]
        return {with_count(name, len(images)): score.value for name, score in found}

    def _log(self, trainer: Trainer, stage: Stage, images: Tensor, started: float) -> None:
        scores = self._scores(images, stage.device)
        decisive, score = next(iter(scores.items()))
        better = not self._best or score < self._best["score"]
        if self._best and _of_samples(self.parts)[0].higher_is_better:
            better = score > self._best["score"]
        said = f"{decisive} = {score:.4g}{', the best so far' if better else ''}"
        log.info("%s: step %d, %s (%.1f s)", stage.name, self._step, said, time.monotonic() - started)
        path = self.folder / "tracking" / f"{stage.name}_{self._step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(images, path, count=16)
        for logger in trainer.loggers:
            logger.log_metrics({f"track/{stage.name}/{name}": value for name, value in scores.items()}, self._step)
            if isinstance(logger, WandbRun):
                logger.log_image(f"track/{stage.name}/samples", [str(path)], self._step)
        if better:
            weights = {name: value.detach().cpu().clone() for name, value in _fitted(stage).state_dict().items()}
            self._best = {"score": score, "step": self._step, "weights": weights, "scored": self._scored}
            self._save_best(trainer, stage)

    def _save_best(self, trainer: Trainer, stage: LightningModule) -> None:
        assert isinstance(stage, Stage)
        step = self._best["step"]
        identity = self.identity if step == trainer.max_steps else self.identity | {"step": step}
        checkpoint = Checkpoint(stage.name, identity, self._best["weights"])
        checkpoint.save(self.folder / "checkpoints" / f"best_{stage.name}.safetensors")


def _of_samples(parts: Parts) -> list[Metric]:
    return [metric for metric in parts.metrics.values() if isinstance(metric, Metric)]


def _fitted(stage: Stage) -> nn.Module:
    """What the stage trains, and a checkpoint of its kind holds."""
    return stage.strategy if isinstance(stage, VarianceStage) else stage.denoiser


@contextmanager
def _averaged(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """The averaged weights in the module, where the run averages."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                stack.enter_context(callback.averaged(stage))
        yield


@contextmanager
def _evaluating(stage: Stage) -> Iterator[None]:
    """Every module in eval mode, and then each in the mode it was in."""
    training = [module for module in stage.modules() if module.training]
    stage.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
