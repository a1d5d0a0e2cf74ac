"""A constant stride counted up from the first time; diffusers calls it leading.  Source: arXiv:2305.08891, Table 2."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.ranges import Count
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.base import GridTrajectory


class LeadingTrajectory(GridTrajectory):
    """``1 + offset + i (N // K)``, i = 0..K-1; ends below N.

    Args:
        offset: diffusers' ``steps_offset``: 0 for its DDPM and DDIM schedulers, 1 for Stable Diffusion.
    Raises:
        ValueError: if it is negative.
    """

    def __init__(self, offset: Count = 0) -> None:
        if offset < 0:
            raise ValueError(f"trajectory.offset must not be negative (got {offset}): give 0 or 1")
        self.offset = offset

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        super().check(schedule, num_steps)
        last = int(self.nodes(schedule.num_steps, num_steps)[-1])
        if last > schedule.num_steps:
            raise ValueError(
                f"trajectory.offset must leave the last time within schedule.num_steps = {schedule.num_steps} (got "
                f"{self.offset}, which leads to {last}): give a smaller offset, or fewer steps"
            )

    def nodes(self, total: int, num_steps: int) -> Tensor:
        return 1 + self.offset + torch.arange(num_steps) * (total // num_steps)
