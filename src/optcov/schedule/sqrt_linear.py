"""The schedule of the Keras-DDPM implementation: amplitude ``sqrt(1 - 0.02 n / N)`` per step, so beta_n = 0.02 n / N.

The original has N = 1000; for other N the betas scale by 1000 / N, as in the linear schedule, so that x_N stays close
to pure noise.
"""

from __future__ import annotations

import torch

from optcov.ranges import Positive, Steps
from optcov.schedule.base import at_least_one
from optcov.schedule.vp import DiscreteSchedule, rescaled


class SqrtLinearSchedule(DiscreteSchedule):
    """``beta_n = beta_max n / N * 1000 / N``.

    Args:
        num_steps: N; must exceed ``1000 * beta_max``, so that every beta stays below 1.
        beta_max: variance of the last step of the 1000-step process.
    """

    def __init__(self, num_steps: Steps = 1000, beta_max: Positive = 0.02) -> None:
        n = torch.arange(1, at_least_one(num_steps) + 1, dtype=torch.float64)
        super().__init__(rescaled(beta_max * n / num_steps))
