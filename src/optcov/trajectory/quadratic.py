"""Quadratically spaced times, dense near the data.  Source: DDIM (arXiv:2010.02502), Appendix D.2."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory


class QuadraticTrajectory(GridTrajectory):
    """``int(v) + 1`` for v in ``linspace(0, sqrt(0.8 N), K)^2``; ends near 0.8 N and drops small times that repeat."""

    def nodes(self, total: int, num_steps: int) -> Tensor:
        root = torch.linspace(0, (0.8 * total) ** 0.5, num_steps, dtype=torch.float64)
        return (root**2).long() + 1
