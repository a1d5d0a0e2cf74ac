"""Evenly spaced times that include both ends.  Source: Analytic-DPM (arXiv:2201.06503), Sec. 6."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory


class EvenTrajectory(GridTrajectory):
    """``round(1 + (N - 1) i / (K - 1))``, i = 0..K-1; for K = 1, the single node N."""

    def nodes(self, total: int, num_steps: int) -> Tensor:
        if num_steps == 1:
            return torch.tensor([total])
        return torch.linspace(1, total, num_steps, dtype=torch.float64).round().long()
