"""Cosine schedule: ``alpha_t^2`` follows a squared cosine.  Source: Improved DDPM (arXiv:2102.09672), Eq. 17."""

from __future__ import annotations

import math

import torch

from optcov.schedule.base import at_least_one
from optcov.schedule.vp import DiscreteSchedule


class CosineSchedule(DiscreteSchedule):
    """``beta_n = min(1 - f(n/N) / f((n-1)/N), beta_max)``, ``f(u) = cos^2((u + offset) / (1 + offset) pi/2)``.

    Args:
        num_steps: N, any number from 1.
        offset: keeps beta_1 from vanishing.
        beta_max: cut of the last step, where f reaches 0.
    """

    def __init__(self, num_steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> None:
        u = torch.linspace(0, 1, at_least_one(num_steps) + 1, dtype=torch.float64)
        f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        super().__init__((1 - f[1:] / f[:-1]).clamp(max=beta_max))
