"""Even spacing counted down from N; diffusers calls it trailing.  Source: arXiv:2305.08891, Table 2."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory


class TrailingTrajectory(GridTrajectory):
    """``round(N - i N / K)``, i = 0..K-1; starts at N and leaves a whole stride for the last step."""

    def nodes(self, total: int, num_steps: int) -> Tensor:
        stride = (total - total / num_steps) - total  # as NumPy's arange computes it, so that exact halves round alike
        down = total + stride * torch.arange(num_steps, dtype=torch.float64)
        return down.round().long().flip(0)
