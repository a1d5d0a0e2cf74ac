"""Variance-exploding paths, ``alpha_t = 1``: data plus noise that grows geometrically.

Source: score SDEs (arXiv:2011.13456), Eq. 7 and Appendix C; the range of noise is EDM's (arXiv:2206.00364), Table 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optcov.ranges import Positive, Steps
from optcov.schedule.base import NoiseSchedule


class VESchedule(NoiseSchedule):
    """``sigma_t = sigma_min (sigma_max / sigma_min)^t`` for ``t > 0``; 0 at ``t = 0``, which is the data.

    Args:
        num_steps: N, the number of times on the grid.
        sigma_min, sigma_max: noise amplitudes just above ``t = 0`` and at ``t = 1``, in units of the data.
    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``.
    """

    def __init__(self, num_steps: Steps = 1000, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0) -> None:
        super().__init__(num_steps)
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"schedule.sigma_max must be finite and above sigma_min > 0 (got sigma_min = {sigma_min}, "
                f"sigma_max = {sigma_max}): give the smallest and the largest noise, such as 0.002 and 80"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def _log_sigma(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        log_sigma = math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)
        return torch.where(t > 0, log_sigma, -torch.inf)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self._log_sigma(t).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._log_sigma(t)

    def time(self, log_snr: Tensor) -> Tensor:
        share = (-log_snr.to(torch.float64) / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return torch.where(log_snr == torch.inf, 0.0, share.clamp(0, 1))
