"""Two kinds of metric: of the samples that a model draws, and of the model itself on data it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from optcov.data.base import DataSource, Split
from optcov.data.pixels import to_uint8
from optcov.denoiser import Denoiser
from optcov.metric.reference import Reference
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Score:
    """A number that a metric answers.

    Args:
        value: the score.
        standard_error: of the value, over images, where it is known.
        details: whatever else is worth a file of its own, as JSON.
    """

    value: float
    standard_error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Metric(ABC):
    """A score of a set of samples, beside a reference or by themselves.

    ``refer_to`` once, then any number of times: ``update`` with all samples, ``compute``, ``reset``.  It is no
    ``nn.Module``: whatever holds one has none of its weights in a checkpoint or an average.
    """

    name: str
    higher_is_better: ClassVar[bool] = False

    def check(self, reference: Reference, num_samples: int) -> None:  # noqa: B027 (most metrics refuse nothing)
        """Refuse what can not be scored, before anything is trained or drawn.

        Args:
            reference: what the samples will be compared with.
            num_samples: how many there will be.
        Raises:
            ValueError: in one sentence.
        """

    def to(self, device: torch.device | str) -> Self:
        """Compute there."""
        return self

    def refer_to(self, reference: Reference) -> None:  # noqa: B027 (not every metric has a reference)
        """Compare with these images from now on; heavy, unless their statistics are kept already.

        Raises:
            ValueError: if they can not be a reference.
        """

    def compared_with(self, training: str) -> str | None:
        """What samples are compared with, in words, for results; None where it is nothing.

        Args:
            training: words for the training images, which it is unless a metric says otherwise.
        """
        return training

    @abstractmethod
    def update(self, images: Tensor) -> None:
        """Add samples.

        Args:
            images: ``[B, *data_shape]``, uint8, or float on [-1, 1], which is rounded to grey levels.
        Raises:
            ValueError: if they are of another type or shape, or not finite.
        """

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """The scores of all samples that were added, by name.

        Raises:
            ValueError: if they are too few, or there is no reference.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget the samples, keep the reference."""


def grey_levels(images: Tensor) -> Tensor:
    """Samples as uint8, any shape; floats on [-1, 1] are rounded, never truncated.

    Raises:
        ValueError: if they are neither, or not finite.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: give uint8, or float on [-1, 1]")
    return to_uint8(images)


class ModelMetric(ABC):
    """A score that a model gets on images of a split, such as bits/dim; no samples are drawn for it.

    Lower is better unless ``higher_is_better``.

    Args:
        split: of the data.
        num_images: how many of its images, drawn with a fixed seed; None for all.
    Raises:
        ValueError: if ``num_images`` has no standard error.
    """

    higher_is_better: ClassVar[bool] = False

    def __init__(self, split: Split = "test", num_images: int | None = None) -> None:
        if num_images is not None and num_images < 2:
            raise ValueError(f"num_images = {num_images} gives no standard error: give at least 2, or null for all")
        self.split, self.num_images = split, num_images

    def images(self, data: DataSource) -> Tensor:
        """The images to score, uint8 ``[n, *data_shape]``; vectors are rounded to 256 levels, too.

        Raises:
            ValueError: if the data have no such split, or it is too small.
        """
        raw = data.train if self.split == "train" else data.load(self.split)
        return self.choose(to_uint8(raw) if raw.is_floating_point() else raw)

    def labels(self, data: DataSource) -> Tensor:
        """The classes of :meth:`images`, int64 ``[n]``.

        Raises:
            ValueError: if the data have none.
        """
        return self.choose(data.labels(self.split))

    def choose(self, levels: Tensor) -> Tensor:
        """The images to score, of all of the split's; or what goes with them.

        Args:
            levels: uint8 ``[n, *data_shape]``, or labels ``[n]``.
        Raises:
            ValueError: if there are fewer than ``num_images``.
        """
        count = len(levels) if self.num_images is None else self.num_images
        if count > len(levels):
            raise ValueError(
                f"num_images = {count} is more than the {len(levels)} images of split = {self.split}: give fewer, "
                "or null for all"
            )
        order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
        return levels[order[:count].sort().values]

    @abstractmethod
    def measure(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        levels: Tensor,
        seed: int = 0,
        batch_size: int = 256,
        labels: Tensor | None = None,
    ) -> Score:
        """Score a model.

        Args:
            denoiser, strategy: in eval mode, on one device.
            times: ascending float64 ``[K]`` in (0, 1], from a trajectory.
            levels: uint8 images ``[n, *data_shape]``, on any device.
            seed: of the noise, which depends on it and an image's place in ``levels`` alone.
            batch_size: images at once.
            labels: of the images, int64 ``[n]``, for a denoiser that knows classes: the score then is that of
                ``p(x | y)``; with None that of the null label.
        Raises:
            ValueError: if the score is not a finite number.
        """


def with_count(name: str, count: int) -> str:
    """A metric's name with its number of samples: ``fd_pixel_2k``, ``fd_pixel_2500``."""
    return f"{name}_{count // 1000}k" if count % 1000 == 0 else f"{name}_{count}"
