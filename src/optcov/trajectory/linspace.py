"""Even spacing that includes both ends, rounded as diffusers' linspace does.  Source: arXiv:2305.08891, Table 2."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory


class LinspaceTrajectory(GridTrajectory):
    """``1 + round((N - 1) i / (K - 1))``, i = 0..K-1; for K = 1, the single node 1, as in diffusers.

    It equals `EvenTrajectory` except for exact halves, which round to the other side when counting starts from 0.
    """

    def nodes(self, total: int, num_steps: int) -> Tensor:
        stride = (total - 1) / max(1, num_steps - 1)
        # count from one end, as NumPy's linspace does, so that exact halves round alike; PyTorch's counts from both
        return 1 + (stride * torch.arange(num_steps, dtype=torch.float64)).round().long()
