"""Interfaces of the two kinds of metric: one scores a model's samples, the other scores the model on given data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.data.base import DataSource, Split
from optcov.data.pixels import from_uint8, to_uint8
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, device_of
from optcov.metric.reference import Reference
from optcov.ranges import PositiveCount
from optcov.sampler.noise import NoiseStream
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Score:
    """The result of a metric.

    Args:
        value: the score.
        standard_error: standard error of the value over images; None if unknown.
        details: further results, written to a separate JSON file.
    """

    value: float
    standard_error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """The terms of a bound as rows, for ``pandas.DataFrame(score.table())``; empty for other scores."""
        if "transitions" not in self.details:
            return []
        decoder, prior = ({"term": name, "t": None, "s": None} | self.details[name] for name in ("decoder", "prior"))
        return [decoder, *({"term": "transition"} | each for each in self.details["transitions"]), prior]


class Metric(ABC):
    """A score of a set of samples, with or without a reference.

    Call `refer_to` once; then, any number of times, call `reset`, `update` with all samples, and `compute`.  A metric
    is not an ``nn.Module``, so its weights never enter a checkpoint or an average.
    """

    name: str
    higher_is_better: ClassVar[bool] = False

    def check(self, reference: Reference, num_samples: int) -> None:  # noqa: B027 (most metrics accept anything)
        """Refuse a case that cannot be scored, before anything is trained or drawn.

        Args:
            reference: the images with which samples will be compared.
            num_samples: how many samples there will be.
        Raises:
            ValueError: if the metric cannot score it; the message is one sentence.
        """

    def to(self, device: torch.device | str) -> Self:
        """Move the metric to a device."""
        return self

    def refer_to(self, reference: Reference) -> None:  # noqa: B027 (not every metric has a reference)
        """Set the images to compare samples with; this is slow unless their statistics are cached.

        Raises:
            ValueError: if they cannot serve as a reference.
        """

    def compared_with(self, training: str) -> str | None:
        """A description of the reference for the results; None if the metric has no reference.

        Args:
            training: a description of the training images, the reference of most metrics.
        """
        return training

    @abstractmethod
    def update(self, images: Tensor) -> None:
        """Add samples.

        Args:
            images: ``[B, *data_shape]``, uint8, or float on [-1, 1], which are rounded to grey levels.
        Raises:
            ValueError: if they have another type or shape, or are not finite.
        """

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """Compute the scores of all samples added so far, by name.

        Raises:
            ValueError: if there are too few samples, or there is no reference.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget the samples and keep the reference."""


def grey_levels(images: Tensor) -> Tensor:
    """Convert samples of any shape to uint8; floats on [-1, 1] are rounded, never truncated.

    Raises:
        ValueError: if they are neither uint8 nor float, or not finite.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8, or float on [-1, 1] (got {images.dtype}): convert them")
    return to_uint8(images)


@dataclass(frozen=True)
class Batch:
    """A batch of data to score.

    Args:
        x_0: 8-bit data in the denoiser's range, ``[B, *data_shape]``.
        noise: one stream per sample.
        condition: labels, int64 ``[B]``; None for no labels.
        advance: to be called at each network call, for a progress bar.
    """

    x_0: Tensor
    noise: NoiseStream
    condition: Tensor | None
    advance: Callable[[], object]


class ModelMetric(ABC):
    """``-log p(x_0)`` or a bound on it, per dimension, as a sum of terms averaged over images; it needs no samples.

    Args:
        split: the split of the data to score: "train", "val" or "test".
        num_images: how many of its images to score, chosen with a fixed seed; None for all.
    Raises:
        ValueError: if ``num_images`` is below 2, because the standard error is then undefined.
    Attributes:
        stream: the random stream of the noise.
        unit: the unit of the score.
        nats_in_unit: how many nats one unit of information has: log 2 for bits, 1 for nats.
    """

    higher_is_better: ClassVar[bool] = False
    stream: ClassVar[Stream]
    unit: ClassVar[str] = "bits/dim"
    nats_in_unit: ClassVar[float] = math.log(2)

    def __init__(self, split: Split = "test", num_images: PositiveCount | None = None) -> None:
        if num_images is not None and num_images < 2:
            raise ValueError(
                f"num_images must be at least 2 (got {num_images}): a standard error needs two; give null for all"
            )
        self.split, self.num_images = split, num_images

    def images(self, data: DataSource, data_range: DataRange) -> Tensor:
        """The images to score, ``[n, *data_shape]``: uint8 if they have 256 grey levels, otherwise float.

        Args:
            data: the source of the images.
            data_range: range of the denoiser; floats are returned in this range.
        Raises:
            ValueError: if the data have no such split, the split is too small, or the data have no grey levels.
        """
        num_levels = data.data_range.num_levels
        if num_levels is None:
            raise ValueError(
                "bits/dim need data with grey levels (got continuous ones, such as latents): leave this metric out, or "
                "set data.num_levels of data=tensors"
            )
        raw = data.train if self.split == "train" else data.load(self.split)
        if num_levels != 256 or not (raw.dtype == torch.uint8 or raw.is_floating_point()):
            return data_range.from_unit(self.choose(data.normalize(raw)))
        return self.choose(to_uint8(data.normalize(raw)) if raw.is_floating_point() else raw)

    def labels(self, data: DataSource) -> Tensor:
        """The classes of `images`, int64 ``[n]``.

        Raises:
            ValueError: if the data have no classes.
        """
        return self.choose(data.labels(self.split))

    def choose(self, values: Tensor) -> Tensor:
        """Choose the rows to score.

        Args:
            values: all images of the split, ``[n, *data_shape]``, or their labels ``[n]``.
        Raises:
            ValueError: if there are fewer than ``num_images``.
        """
        count = len(values) if self.num_images is None else self.num_images
        if count > len(values):
            raise ValueError(
                f"num_images must be at most {len(values)}, the images of split = {self.split} (got {count}): "
                "give fewer, or null for all"
            )
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
        return values[order[:count].sort().values]

    @abstractmethod
    def nats(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, batch: Batch) -> Tensor:
        """Compute the terms of a batch.

        Args:
            denoiser, strategy, times: as in `measure`.
            batch: the data.
        Returns:
            float64 ``[terms, B]``, in nats.
        """

    def term_details(self, times: Tensor, bits: Tensor) -> dict[str, Any]:
        """Details of the terms ``[terms, n]`` in the score's unit, for `Score`."""
        return {}

    @torch.no_grad()
    def measure(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        images: Tensor,
        seed: int = 0,
        batch_size: int = 256,
        labels: Tensor | None = None,
        progress: bool = True,
    ) -> Score:
        """Score a model.

        Args:
            denoiser, strategy: in eval mode, on the same device.
            times: ascending float64 ``[K]`` in (0, 1], from a trajectory.
            images: ``[n, *data_shape]``, uint8 grey levels or float in the denoiser's range, on any device.
            seed: seed of the noise, which depends only on it and on an image's position in ``images``.
            batch_size: images per network call.
            labels: class of each image, int64 ``[n]``; only for class-conditional denoisers, which are then scored
                as ``p(x | y)``.  None for the null label.
            progress: whether to show a progress bar.
        Raises:
            ValueError: if the score is not finite.
        """
        device = device_of(denoiser)
        found, calls = [], []
        with tqdm(desc=self.unit, leave=False, unit="call", disable=not progress) as bar:
            for i, clean in enumerate(torch.split(images, batch_size)):
                indices = range(i * batch_size, i * batch_size + len(clean))
                noise = NoiseStream(derive_seed(seed, self.stream), indices, denoiser.data_shape, device)
                condition = None if labels is None else labels[indices.start : indices.stop].to(device)
                before = denoiser.cost.nfe
                x_0 = denoiser.data_range.from_unit(from_uint8(clean)) if clean.dtype == torch.uint8 else clean
                batch = Batch(x_0.to(device), noise, condition, bar.update)
                found.append(self.nats(denoiser, strategy, times, batch).cpu())
                calls.append((denoiser.cost.nfe - before) // len(clean))
        bits = torch.cat(found, 1) / (images[0].numel() * self.nats_in_unit)
        total = mean_and_error(bits.sum(0))
        details = {"unit": self.unit, "total": total, "network_calls": calls}  # one number of calls per batch
        return Score(total["value"], total["standard_error"], details | self.term_details(times, bits))


def with_count(name: str, count: int) -> str:
    """A metric's name with the number of samples, such as ``fd_pixel_2k`` or ``fd_pixel_2500``."""
    return f"{name}_{count // 1000}k" if count % 1000 == 0 else f"{name}_{count}"


def mean_and_error(values: Tensor) -> dict[str, float]:
    """The mean, as ``value``, and the ``standard_error`` of bits/dim ``[n]``, n at least 2.

    Raises:
        ValueError: if a value is not finite.
    """
    broken = int((~values.isfinite()).sum())
    if broken:
        raise ValueError(
            f"bits/dim must be finite (the mean network or its variance gives NaN or infinity for {broken} of "
            f"{len(values)} images): train longer, or with trainer.precision=32-true"
        )
    return {"value": float(values.mean()), "standard_error": float(values.std()) / math.sqrt(len(values))}
