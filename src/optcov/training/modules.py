"""Lightning modules for training stages and for sampling; the formulas are in denoisers, strategies and samplers."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from optcov.data.batches import LabelledBatch
from optcov.data.pixels import to_uint8
from optcov.denoiser import Denoiser
from optcov.fitting import noised
from optcov.guidance import Guidance
from optcov.sampler import ImageBar, NoiseStream, Sampler
from optcov.schedule.levels import NoiseLevels
from optcov.seeds import Stream, derive_seed
from optcov.training.sample_store import SampleStore, now
from optcov.training.store import Kind
from optcov.variance.base import Trained, VarianceStrategy

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StageSettings:
    """How a stage trains.

    Args:
        optimizer: makes the optimizer from the trained parameters.
        warmup_steps: number of steps over which the learning rate rises linearly.
        cooldown: final share of the steps, in [0, 1], over which the learning rate falls linearly to 0.
        seed: seed of times and noise.
        label_dropout: share of labels, in [0, 1), replaced by the null label; only for class-conditional denoisers.
    """

    optimizer: OptimizerFactory
    warmup_steps: int = 0
    cooldown: float = 0.0
    seed: int = 0
    label_dropout: float = 0.0


def learning_rate_factor(step: int, max_steps: int, warmup_steps: int = 0, cooldown: float = 0.0) -> float:
    """The learning rate at a step relative to the optimizer's: it rises, stays constant, then falls towards 0.

    Args:
        step: the step, counted from 0; with a cooldown, ``max_steps`` and beyond give 0.
        max_steps: number of steps of the stage.
        warmup_steps: number of steps over which the rate rises.
        cooldown: share of ``max_steps``, in [0, 1], over which the rate falls; 0 for no cooldown.
    """
    rise = (step + 1) / (warmup_steps + 1)
    fall = (max_steps - step) / (cooldown * max_steps) if cooldown > 0 else 1.0
    return max(0.0, min(1.0, rise, fall))


def steps_before_cooldown(max_steps: int, cooldown: float) -> int:
    """How many of the first steps have a `learning_rate_factor` that does not depend on ``max_steps``."""
    return math.floor((1 - cooldown) * max_steps)


class Stage(LightningModule):
    """A training stage, which draws times and noise and takes a step on the loss of each sample.

    The noise of a step depends only on (seed, rank, step), so a resumed run ends exactly like an uninterrupted one.

    Args:
        denoiser: defines the noisy data to train on.
        settings: how the stage trains.
    """

    name: Kind

    def __init__(self, denoiser: Denoiser, settings: StageSettings) -> None:
        super().__init__()
        self.denoiser, self.settings = denoiser, settings

    @property
    def labelled(self) -> bool:
        """Whether batches must carry labels."""
        return self.denoiser.num_classes is not None

    @abstractmethod
    def per_sample_loss(self, x_t: Tensor, target: Tensor, level: NoiseLevels, labels: Tensor | None) -> Tensor:
        """The loss of each sample, ``[B]``.

        Args:
            x_t: noisy data, ``[B, *event]``.
            target: the correct output of the network; see `Denoiser.target`.
            level: the noise level of each sample, ``[B]``.
            labels: class of each sample, int64 ``[B]``; None unless the stage is labelled.
        """

    def training_step(self, batch: Tensor | LabelledBatch, batch_idx: int) -> Tensor:
        x_0, labels = batch if isinstance(batch, LabelledBatch) else (batch, None)
        assert isinstance(x_0, Tensor)
        torch.manual_seed(derive_seed(self.settings.seed, Stream.TRAINING, self.global_rank, batch_idx))
        x_0 = self.denoiser.data_range.from_unit(x_0)
        x_t, target, level = noised(self.denoiser, x_0)
        if labels is not None and self.settings.label_dropout > 0:
            dropped = torch.rand(len(x_0), device=x_0.device) < self.settings.label_dropout
            labels = labels.masked_fill(dropped, self.denoiser.num_classes or 0)
        loss = self.per_sample_loss(x_t, target, level, labels).mean()
        self.log(f"{self.name}/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        settings, max_steps = self.settings, self.trainer.max_steps
        optimizer = settings.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if hasattr(optimizer, "_step_supports_amp_scaling"):  # a fused optimizer; Lightning unscales before it clips
            optimizer._step_supports_amp_scaling = False
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, max_steps, settings.warmup_steps, settings.cooldown)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class MeanStage(Stage):
    """Stage 1: trains the mean network."""

    name: Kind = "mean"

    def per_sample_loss(self, x_t: Tensor, target: Tensor, level: NoiseLevels, labels: Tensor | None) -> Tensor:
        return self.denoiser.loss(self.denoiser(x_t, level, labels), target)


class FrozenMeanStage(Stage):
    """A stage whose mean network is frozen, in eval mode, and left out of the stage's checkpoints."""

    def __init__(self, denoiser: Denoiser, settings: StageSettings) -> None:
        super().__init__(denoiser.requires_grad_(False), settings)
        self.strict_loading = False

    def on_train_start(self) -> None:
        self.denoiser.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if not name.startswith("denoiser.")}


class VarianceStage(FrozenMeanStage):
    """Stage 2: trains a strategy on the frozen mean network.

    Args:
        denoiser, settings: as in `Stage`.
        strategy: the strategy to train.
    """

    name: Kind = "variance"

    def __init__(self, denoiser: Denoiser, strategy: Trained, settings: StageSettings) -> None:
        super().__init__(denoiser, settings)
        self.strategy = strategy

    def per_sample_loss(self, x_t: Tensor, target: Tensor, level: NoiseLevels, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            prediction = self.denoiser(x_t, level, labels)
        return self.strategy.loss(self.denoiser, prediction, target)


class ClassifierStage(FrozenMeanStage):
    """Trains a classifier of noisy data; it uses only the forward process of the denoiser.

    Args:
        denoiser, settings: as in `Stage`.
        classifier: the classifier to train.
    """

    name = "classifier"

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, settings: StageSettings) -> None:
        super().__init__(denoiser, settings)
        self.classifier = classifier

    @property
    def labelled(self) -> bool:
        return True

    def per_sample_loss(self, x_t: Tensor, target: Tensor, level: NoiseLevels, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return F.cross_entropy(self.classifier(x_t, self.denoiser.network_time(level)), labels, reduction="none")


class SamplingStage(LightningModule):
    """Draws the missing samples batch by batch, and stores each batch as a file.

    Processes share complete batches, so no sample depends on the number of processes.  The Trainer must not divide
    batches again (``use_distributed_sampler=False``).

    Args:
        denoiser, strategy, sampler, times: as in `optcov.sampler.sample`.
        seed: sample i depends only on (seed, i).
        store: where samples are stored.
        guidance: as in `optcov.sampler.sample`.
        labels: the class of each sample, int64 ``[n]``, up to the end of the last batch.
        description: the text in front of the progress bar, which counts the images of all processes; shown only on a
            terminal.
        finish: what becomes of samples on [-1, 1], see `optcov.data.DataSource.finish`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        sampler: Sampler,
        times: Tensor,
        seed: int,
        store: SampleStore,
        guidance: Guidance | None = None,
        labels: Tensor | None = None,
        description: str = "sampling",
        finish: Callable[[Tensor], Tensor] = to_uint8,
    ) -> None:
        super().__init__()
        # autocast keeps its cast copies of weights between calls only for weights that require gradients
        self.denoiser, self.strategy = denoiser.requires_grad_(), strategy
        self.sampler, self.times, self.finish = sampler, times, finish
        self.seed, self.store = seed, store
        self.guidance, self.labels, self.description = guidance, labels, description
        self.missing = [(batch.start, batch.stop) for batch in store.missing()]
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer batches than processes

    def predict_dataloader(self) -> DataLoader[tuple[int, int]]:
        mine = self.missing[self.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def on_predict_start(self) -> None:
        count = len(self.store)
        self.bar = ImageBar(
            self.sampler.num_updates(self.denoiser.schedule, self.times),
            count,
            count - sum(min(stop, count) - start for start, stop in self.missing),
            self.trainer.world_size,
            self.description,
            disable=not (self.trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_predict_end(self) -> None:
        self.bar.close()

    def predict_step(self, bounds: Sequence[int], batch_idx: int) -> None:
        try:
            self._draw(range(*bounds))
        except BaseException:
            self.bar.close()  # so that the next output starts on a new line
            raise

    @torch.inference_mode(mode=False)  # so that a strategy may turn gradients on
    @torch.no_grad()
    def _draw(self, indices: range) -> None:
        began, before = now(), replace(self.denoiser.cost)
        noise = NoiseStream(self.seed, indices, self.denoiser.data_shape, self.device)
        labels = None if self.labels is None else self.labels[indices.start : indices.stop].to(self.device)
        guidance = None if self.guidance is None else self.guidance.of(indices)
        states = self.sampler.steps(
            self.denoiser, self.strategy, self.times, noise, guidance=guidance, condition=labels
        )
        for state in self.bar.watch(states, len(indices)):
            x_0 = state.x
        images = self.finish(self.denoiser.data_range.to_unit(x_0)).cpu()
        self.store.write(indices, images, began, now(), self.denoiser.cost.since(before))
