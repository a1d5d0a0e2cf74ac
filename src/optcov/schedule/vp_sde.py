"""VP-SDE schedule: ``dx = -beta(t)/2 x dt + sqrt(beta(t)) dw`` with linear beta(t).

Source: Score SDEs (arXiv:2011.13456), Eq. 11 and Appendix C.  The closed form holds at every t, so the discrete beta_n
on the grid n / N are exact: ``1 - exp(-int beta(t) dt)`` over each interval.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optcov.ranges import Positive, Steps
from optcov.schedule.vp import VPSchedule


class VPSDESchedule(VPSchedule):
    """``log alpha_t = -(beta_min t + (beta_max - beta_min) t^2 / 2) / 2``.

    Args:
        num_steps: N, at least 1.
        beta_min, beta_max: the rate beta(t) at t = 0 and t = 1.
    Raises:
        ValueError: unless ``0 < beta_min <= beta_max`` and both are finite.
    """

    def __init__(self, num_steps: Steps = 1000, beta_min: Positive = 0.1, beta_max: Positive = 20.0) -> None:
        super().__init__(num_steps)
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"schedule.beta_max must be finite and at least beta_min > 0 (got beta_min = {beta_min}, "
                f"beta_max = {beta_max}): give two rates, such as 0.1 and 20"
            )
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_alpha(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # the root of a quadratic, in a form that loses no digits near t = 0
        rate, slope = self.beta_min, self.beta_max - self.beta_min
        integral = -2 * log_alpha
        return (2 * integral / (rate + (rate**2 + 2 * slope * integral).sqrt())).clamp(0, 1)
