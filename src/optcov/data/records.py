"""Images that are decoded one at a time to fill a `PixelCache`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class CorruptImageError(ValueError):
    """An image cannot be decoded; the message names it."""


class Records(ABC):
    """The images of a split in order, opened but not yet decoded.

    Attributes:
        labels: int64 ``[n]``, or None for data without classes.
        classes: names of the classes, in order; None if they have no names.
    """

    labels: NDArray[np.int64] | None = None
    classes: list[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> NDArray[Any]:
        """Decode one image, uint8 ``[C, H, W]``, or its latent, float32.

        Raises:
            CorruptImageError: if it cannot be decoded.
        """


class ArrayRecords(Records):
    """Images that are already decoded.

    Args:
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]`` or None.
    """

    def __init__(self, images: Pixels, labels: NDArray[np.int64] | None = None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pixels:
        pixels: Pixels = self.images[index]
        return pixels


class Selection(Records):
    """A subset of other records.

    Args:
        records: all images.
        indices: indices of the images to keep, in order.
    """

    def __init__(self, records: Records, indices: Sequence[int]) -> None:
        self.records, self.indices = records, indices
        self.labels = None if records.labels is None else records.labels[np.asarray(indices, dtype=np.int64)]
        self.classes = records.classes

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> NDArray[Any]:
        return self.records.image(self.indices[index])


def evenly_spaced(count: int, limit: int | None) -> range | list[int]:
    """At most ``limit`` of ``count`` indices, evenly spaced, so that every class of sorted data is kept."""
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]
