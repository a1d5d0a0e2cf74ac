"""The interface of data sources: a split is one tensor in memory, mapped to the range of the model when it is used.

Images are modelled on [-1, 1] with 256 grey levels, and their samples are converted back to grey levels.  Other data
define the range in which they are modelled (`DataSource.data_range`), what is kept of their samples
(`DataSource.finish`), and how these become the 256 levels that scores and pictures use (`DataSource.levels`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from optcov.data.pixels import from_uint8, to_uint8
from optcov.data_range import DataRange

Split = Literal["train", "val", "test"]


@dataclass(eq=False, kw_only=True)
class DataSource(ABC):
    """A data set that fits in memory.

    A subclass implements `load`.  Images are uint8 ``[n, C, H, W]``; vectors are float ``[n, D]`` on [-1, 1]; data in
    another range override further methods.

    Args:
        batch_size: samples per process and training step.
        seed: seed for the order of the training samples, their flips, and `calibration`.
        random_flip: mirror a random half of the training images, chosen anew in each step.
    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    batch_size: int = 64
    seed: int = 0
    random_flip: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1 (got {self.batch_size}): give 64")

    @abstractmethod
    def load(self, split: Split) -> Tensor:
        """Load the whole split, uint8 ``[n, C, H, W]`` or float ``[n, D]``.

        Raises:
            ValueError: if the data have no such split, or it cannot be read.
        """

    def labels(self, split: Split) -> Tensor:
        """The class of each sample of `load`, int64 ``[n]``.

        Raises:
            ValueError: if the data have no classes.
        """
        raise ValueError(f"{type(self).__name__} has no classes: choose data with classes, such as data=cifar10")

    @property
    def num_classes(self) -> int:
        """K, the number of classes; labels are 0..K-1.

        Raises:
            ValueError: if the data have no classes.
        """
        return int(self.labels("train").max()) + 1

    def identity(self) -> dict[str, Any]:
        """What determines the training data in addition to the config, as JSON; empty unless they come from files."""
        return {}

    @cached_property
    def train(self) -> Tensor:
        """The training split, loaded once."""
        return self.load("train")

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def data_range(self) -> DataRange:
        """The range to which `normalize` maps the data."""
        return DataRange()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample that `finish` returns."""
        return self.data_shape

    @property
    def sample_dtype(self) -> torch.dtype:
        """Type of the samples that `finish` returns: uint8 for images, float32 for other data."""
        return torch.uint8

    def reference(self) -> Tensor:
        """The training split as grey levels, for comparison with samples; uint8 ``[n, *sample_shape]``."""
        return self.levels(self.train)

    def normalize(self, batch: Tensor) -> Tensor:
        """Convert a batch of `load`, on any device, to float32 in `data_range`."""
        return from_uint8(batch) if batch.dtype == torch.uint8 else batch.to(torch.float32)

    def finish(self, x_0: Tensor) -> Tensor:
        """Convert samples of the model to the form in which they are kept; the default is grey levels.

        Args:
            x_0: samples, nominally in `data_range`, ``[B, *data_shape]``, on any device.
        Returns:
            ``[B, *sample_shape]`` of `sample_dtype`, on the same device.
        Raises:
            ValueError: if any sample is not finite.
        """
        return to_uint8(x_0)

    def levels(self, samples: Tensor) -> Tensor:
        """Convert the result of `finish` or `load` to the uint8 levels that scores and pictures use."""
        return samples if samples.dtype == torch.uint8 else to_uint8(samples)

    def calibration(self, count: int) -> Tensor:
        """``count`` training samples drawn with the seed, float32 in `data_range`; all of them if there are fewer."""
        return self.normalize(self.train[self._calibration_order(count)])

    def calibration_labels(self, count: int) -> Tensor:
        """The labels of `calibration`."""
        return self.labels("train")[self._calibration_order(count)]

    def _calibration_order(self, count: int) -> Tensor:
        return torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))[:count]
