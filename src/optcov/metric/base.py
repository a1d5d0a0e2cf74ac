"""A metric of sample quality is given 8-bit images, of the model and of the reference, and answers a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Metric(ABC):
    """A score over a set of samples; lower is better."""

    name: ClassVar[str]

    @abstractmethod
    def update(self, images: Tensor, real: bool) -> None:
        """Add uint8 ``[B, *data_shape]``, of the reference where ``real``."""

    @abstractmethod
    def compute(self) -> float:
        """The score of all that was added."""


def with_count(name: str, count: int) -> str:
    """A metric's name with its number of samples: ``fd_pixel_2k``, ``fd_pixel_2500``."""
    return f"{name}_{count // 1000}k" if count % 1000 == 0 else f"{name}_{count}"
