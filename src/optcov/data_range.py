"""The range of the data, which defines clipping, the bound on a covariance, and grey levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

End = float | tuple[float, ...] | None
"""An end of a range: of all data, or one for each channel."""


@dataclass(frozen=True)
class DataRange:
    """The interval ``[low, high]`` of the data and, for images, the number of grey levels in it.

    Args:
        low, high: the ends of the interval, or one for each channel; None for data with unknown support, such as
            latents.
        num_levels: number of grey levels of stored images, evenly spaced from low to high, at least 2; None for
            continuous data.
    Raises:
        ValueError: unless both ends are finite with ``low < high``, or both are None; if ``num_levels`` is below 2.
    """

    low: End = -1.0
    high: End = 1.0
    num_levels: int | None = 256

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            if isinstance(end, Sequence | Tensor):
                object.__setattr__(self, name, tuple(float(each) for each in end))
        ends = (self.low, self.high)
        if ends == (None, None):
            return
        pairs = [] if None in ends else list(zip(*(_each(end) for end in ends), strict=False))
        counts = {len(end) for end in ends if isinstance(end, tuple)}
        if not pairs or len(counts) > 1 or not all(-math.inf < low < high < math.inf for low, high in pairs):
            raise ValueError(
                f"data_range must be two finite ends, low below high, or none (got {self.low} and {self.high}): "
                "give (-1, 1), (0, 1), or None for data with unknown support"
            )
        if self.num_levels is not None and self.num_levels < 2:
            raise ValueError(
                f"data_range.num_levels must be at least 2 (got {self.num_levels}): give 256 for 8-bit images, or None "
                "for data without grey levels"
            )

    @staticmethod
    def standardised(
        mean: float | Sequence[float], std: float | Sequence[float], num_levels: int | None = 256
    ) -> DataRange:
        """The range of images on [0, 1] after ``(x - mean) / std``, of all pixels or for each channel.

        Raises:
            ValueError: if a std is not positive.
        """
        scalar = isinstance(mean, int | float) and isinstance(std, int | float)
        means, stds = _each(mean), _each(std)
        count = max(len(means), len(stds))
        means, stds = (values * count if len(values) == 1 else values for values in (means, stds))
        if len(means) != len(stds) or not all(each > 0 for each in stds):
            raise ValueError(f"data_range must have a mean and a positive std for each channel (got {mean} and {std})")
        low = tuple(-m / s for m, s in zip(means, stds, strict=True))
        high = tuple((1 - m) / s for m, s in zip(means, stds, strict=True))
        return DataRange(low[0] if scalar else low, high[0] if scalar else high, num_levels)

    @property
    def is_bounded(self) -> bool:
        """Whether the support is known."""
        return self.low is not None

    @property
    def is_per_channel(self) -> bool:
        """Whether channels have ends of their own."""
        return isinstance(self.low, tuple) or isinstance(self.high, tuple)

    @property
    def width(self) -> float | None:
        """``high - low``, of the widest channel; None if unknown."""
        if self.low is None or self.high is None:
            return None
        return max(high - low for low, high in zip(*self._pairs(), strict=True))

    @property
    def variance_bound(self) -> float | None:
        """The largest variance a coordinate can have, ``((high - low) / 2)^2`` (Popoviciu); None if unknown.

        1 on [-1, 1]: Analytic-DPM (arXiv:2201.06503), Theorem 2.  Of channels, the widest one's.
        """
        return None if self.width is None else (self.width / 2) ** 2

    @property
    def grey_level(self) -> float | None:
        """The distance of two grey levels in units of the data, of the widest channel; None where there are none."""
        if self.width is None or self.num_levels is None:
            return None
        return self.width / (self.num_levels - 1)

    def ends(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Both ends of a bounded range; those of channels shaped to go with ``x``, ``[B, C, ...]``."""
        if not self.is_per_channel:
            return self.low, self.high  # type: ignore[return-value]
        shape = (-1, *[1] * (x.ndim - 2))
        low, high = (torch.tensor(end, dtype=x.dtype).reshape(shape).to(x.device) for end in self._pairs())
        return low, high

    def clip(self, x_0: Tensor) -> Tensor:
        """``x_0`` clamped to the support; itself where that is unknown."""
        if self.low is None:
            return x_0
        if not self.is_per_channel:
            return x_0.clamp(self.low, self.high)  # type: ignore[arg-type]
        channels = zip(x_0.unbind(1), *self._pairs(), strict=True)  # by numbers, for tensors would go to the device
        return torch.stack([channel.clamp(low, high) for channel, low, high in channels], 1)

    def from_unit(self, images: Tensor) -> Tensor:
        """Data on [-1, 1] in this range."""
        if self.low is None or (self.low, self.high) == (-1, 1):
            return images
        low, high = self.ends(images)
        return (images + 1) * ((high - low) / 2) + low

    def to_unit(self, x_0: Tensor) -> Tensor:
        """Data of this range on [-1, 1]; inverse of `from_unit`."""
        if self.low is None or (self.low, self.high) == (-1, 1):
            return x_0
        low, high = self.ends(x_0)
        return (x_0 - low) * (2 / (high - low)) - 1

    def _pairs(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The ends of each channel; of one, where they are the same for all."""
        low, high = _each(self.low), _each(self.high)
        count = max(len(low), len(high))
        return low * (count // len(low)), high * (count // len(high))


def _each(end: float | Sequence[float] | None) -> tuple[float, ...]:
    return tuple(end) if isinstance(end, Sequence) else (float(end or 0.0),)
