"""The interface of data sources: a split is one tensor in memory, which is mapped to its range when it is used.

Images are modelled on [-1, 1], with 256 grey levels, and their samples end as grey levels again.  Other data say in
which range they are modelled (`DataSource.data_range`), what their samples end as (`DataSource.finish`), and how these
are scored and pictured, which is always by 256 levels (`DataSource.levels`).
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

    A subclass implements `load`. Images are uint8 ``[n, C, H, W]``; vectors are float ``[n, D]`` on [-1, 1]; data of
    another range override more.

    Args:
        batch_size: samples per process and training step.
        seed: seed of the order of the training samples, of their flips, and of `calibration`.
        random_flip: mirror half of the training images, chosen again in each step.
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
        """The whole split, uint8 ``[n, C, H, W]`` or float ``[n, D]``.

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
        """K, where labels are 0..K-1.

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
        """Where `normalize` puts the data."""
        return DataRange()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as `finish` leaves it."""
        return self.data_shape

    @property
    def sample_dtype(self) -> torch.dtype:
        """Type of samples as `finish` leaves them: uint8, or float32 where they are more than pictures."""
        return torch.uint8

    def reference(self) -> Tensor:
        """The training split as grey levels, for comparison with samples; uint8 ``[n, *sample_shape]``."""
        return self.levels(self.train)

    def normalize(self, batch: Tensor) -> Tensor:
        """Convert a batch of `load`, on any device, to float32 in `data_range`."""
        return from_uint8(batch) if batch.dtype == torch.uint8 else batch.to(torch.float32)

    def finish(self, x_0: Tensor) -> Tensor:
        """What is kept of samples: grey levels, unless they are more than pictures.

        Args:
            x_0: samples in `data_range`, nominally, ``[B, *data_shape]``, on any device.
        Returns:
            ``[B, *sample_shape]`` of `sample_dtype`, on the same device.
        Raises:
            ValueError: if any is not finite.
        """
        return to_uint8(x_0)

    def levels(self, samples: Tensor) -> Tensor:
        """Samples as `finish` leaves them, or data as `load` gives them, as they are scored and pictured; uint8."""
        return samples if samples.dtype == torch.uint8 else to_uint8(samples)

    def calibration(self, count: int) -> Tensor:
        """``count`` training samples drawn with the seed, float32 in `data_range`; all of them if there are fewer."""
        return self.normalize(self.train[self._calibration_order(count)])

    def calibration_labels(self, count: int) -> Tensor:
        """The labels of `calibration`."""
        return self.labels("train")[self._calibration_order(count)]

    def _calibration_order(self, count: int) -> Tensor:
        return torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))[:count]
