"""The range of the data, which defines clipping, the bound on a covariance, and grey levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DataRange:
    """The interval ``[low, high]`` of the data and, for images, the number of grey levels in it.

    Args:
        low, high: the ends of the interval; None for data with unknown support, such as latents.
        num_levels: number of grey levels of stored images, evenly spaced from low to high, at least 2; None for
            continuous data.
    Raises:
        ValueError: unless both ends are finite with ``low < high``, or both are None; if ``num_levels`` is below 2.
    """

    low: float | None = -1.0
    high: float | None = 1.0
    num_levels: int | None = 256

    def __post_init__(self) -> None:
        given = [end for end in (self.low, self.high) if end is not None]
        if len(given) == 1 or (given and not -math.inf < given[0] < given[1] < math.inf):
            raise ValueError(
                f"data_range must be two finite ends, low below high, or none (got {self.low} and {self.high}): "
                "give (-1, 1), (0, 1), or None for data with unknown support"
            )
        if self.num_levels is not None and self.num_levels < 2:
            raise ValueError(
                f"data_range.num_levels must be at least 2 (got {self.num_levels}): give 256 for 8-bit images, or None "
                "for data without grey levels"
            )

    @property
    def is_bounded(self) -> bool:
        """Whether the support is known."""
        return self.low is not None

    @property
    def variance_bound(self) -> float | None:
        """The largest variance a coordinate can have, ``((high - low) / 2)^2`` (Popoviciu); None if unknown.

        1 on [-1, 1]: Analytic-DPM (arXiv:2201.06503), Theorem 2.
        """
        return None if self.low is None or self.high is None else ((self.high - self.low) / 2) ** 2

    @property
    def grey_level(self) -> float | None:
        """The distance between two grey levels in units of the data; None if there are no grey levels."""
        if self.low is None or self.high is None or self.num_levels is None:
            return None
        return (self.high - self.low) / (self.num_levels - 1)

    def clip(self, x_0: Tensor) -> Tensor:
        """Clamp ``x_0`` to the support; it is returned unchanged if the support is unknown."""
        return x_0 if self.low is None or self.high is None else x_0.clamp(self.low, self.high)

    def from_unit(self, images: Tensor) -> Tensor:
        """Map data on [-1, 1] to this range."""
        if self.low is None or self.high is None or (self.low, self.high) == (-1, 1):
            return images
        return (images + 1) * ((self.high - self.low) / 2) + self.low

    def to_unit(self, x_0: Tensor) -> Tensor:
        """Map data in this range to [-1, 1]; the inverse of `from_unit`."""
        if self.low is None or self.high is None or (self.low, self.high) == (-1, 1):
            return x_0
        return (x_0 - self.low) * (2 / (self.high - self.low)) - 1
