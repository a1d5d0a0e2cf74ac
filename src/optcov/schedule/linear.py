"""Linear schedule: beta_n evenly spaced from 1e-4 to 0.02 at N = 1000, scaled by 1000 / N for other N.

Source: DDPM (arXiv:2006.11239), Sec. 4; the scaling comes from Improved DDPM.
"""

from __future__ import annotations

import torch

from optcov.ranges import Positive, Steps
from optcov.schedule.base import at_least_one
from optcov.schedule.vp import DiscreteSchedule, rescaled


class LinearSchedule(DiscreteSchedule):
    """``beta_n = linspace(beta_min, beta_max, N) * 1000 / N``.

    Args:
        num_steps: N; must exceed ``1000 * beta_max``, so that every beta stays below 1.
        beta_min, beta_max: variances of the first and the last step of the 1000-step process.
    """

    def __init__(self, num_steps: Steps = 1000, beta_min: Positive = 1e-4, beta_max: Positive = 0.02) -> None:
        # counted down from the last step, so that N = 1 gives beta_max
        beta = torch.linspace(beta_max, beta_min, at_least_one(num_steps), dtype=torch.float64).flip(0)
        super().__init__(rescaled(beta))
