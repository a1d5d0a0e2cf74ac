"""Times evenly spaced in a root of the time, and therefore dense near the data.

With p = 2 and t_max = 0.8 this is DDIM's quadratic spacing, except at the ends.  EDM (arXiv:2206.00364), Eq. 5, spaces
the noise level in the same way; see `KarrasTrajectory`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.ranges import Positive, Share
from optcov.trajectory.base import GridTrajectory


class PowerTrajectory(GridTrajectory):
    """``N t_max (i / K)^p``, i = 1..K; if ``t_min`` is given, ``t^(1/p)`` spaced evenly from ``t_min`` to ``t_max``.

    Times are rounded to the grid and are at least 1/N; repeated times are dropped.

    Args:
        power: p, at least 1: 1 is even, 2 quadratic, 3 cubic.
        t_max: the last time, in (0, 1].
        t_min: the first time, positive and below ``t_max``; None to place it like the others.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, power: Positive = 2.0, t_max: Share = 1.0, t_min: Share | None = None) -> None:
        if not 1 <= power < float("inf"):
            raise ValueError(f"trajectory.power must be at least 1 (got {power}): give 2 or 3, or 1 for even times")
        if not 0 < t_max <= 1:
            raise ValueError(f"trajectory.t_max must lie above 0 and be at most 1 (got {t_max}): give 1, or 0.8")
        if t_min is not None and not 0 < t_min < t_max:
            raise ValueError(
                f"trajectory.t_min must lie between 0 and trajectory.t_max = {t_max} (got {t_min}): give null, or 0.001"
            )
        self.power, self.t_max, self.t_min = power, t_max, t_min

    def nodes(self, total: int, num_steps: int) -> Tensor:
        i = torch.arange(1, num_steps + 1, dtype=torch.float64)
        low, high = (self.t_min or 0.0) ** (1 / self.power), self.t_max ** (1 / self.power)
        share = i / num_steps if self.t_min is None or num_steps == 1 else (i - 1) / (num_steps - 1)
        times: Tensor = (low + share * (high - low)) ** self.power
        return (total * times).round().long().clamp(1, total)
