r"""Cosine schedule: ``alpha_t^2`` follows a squared cosine.  Source: Improved DDPM (arXiv:2102.09672), Eq. 17.

The difference of two squared cosines in ``1 - f(u) / f(v)`` is computed as a product, which does not cancel for short
steps:

    cos^2 a - cos^2 b = sin(b - a) sin(b + a)
"""

from __future__ import annotations

import math

import torch

from optcov.ranges import NonNegative, Positive, Steps
from optcov.schedule.base import at_least_one
from optcov.schedule.vp import DiscreteSchedule


class CosineSchedule(DiscreteSchedule):
    """``beta_n = min(1 - f(n/N) / f((n-1)/N), beta_max)``, ``f(u) = cos^2((u + offset) / (1 + offset) pi/2)``.

    Args:
        num_steps: N, at least 1.
        offset: keeps beta_1 from vanishing.
        beta_max: upper limit on every beta; it applies near the last step, where f reaches 0.
    """

    def __init__(self, num_steps: Steps = 1000, offset: NonNegative = 0.008, beta_max: Positive = 0.999) -> None:
        u = torch.linspace(0, 1, at_least_one(num_steps) + 1, dtype=torch.float64)
        angle = (u + offset) / (1 + offset) * math.pi / 2
        rise = math.sin(math.pi / 2 / (1 + offset) / num_steps) * torch.sin(angle[1:] + angle[:-1])
        super().__init__((rise / torch.cos(angle[:-1]) ** 2).clamp(max=beta_max))
