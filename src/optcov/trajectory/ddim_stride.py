"""Constant stride, ending below N.  Source: the published implementation of DDIM (arXiv:2010.02502), Appendix D.2."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory


class DDIMStrideTrajectory(GridTrajectory):
    """``range(1, N + 1, N // K)``; gives more than K times if K does not divide N."""

    def nodes(self, total: int, num_steps: int) -> Tensor:
        return torch.arange(1, total + 1, total // num_steps)
