r"""Euler-Maruyama steps of the reverse VP-SDE.

    dx = (-beta/2 x - beta grad log q_t(x)) dt + sqrt(beta) dw,     grad log q_t(x) = -e / sigma_t

backwards from t to s, over which ``b = int_s^t beta(u) du = 2 log(alpha_s / alpha_t)`` is exact on every schedule.
Source: Score SDEs (arXiv:2011.13456), Eq. 6, 11 and Appendix E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.sampler.multistep import LinearSampler, LinearSteps
from optcov.schedule.base import NoiseSchedule


class EulerMaruyamaSampler(LinearSampler):
    """``x_s = (1 + b/2) x_t - b e / sigma_t + sqrt(b) z``; the step to 0 returns m without noise.

    The noise is that of the SDE, whatever ``var`` models.

    Args:
        num_steps: K, one network call each.
        clip_x0: clamp the predicted x_0 to [-1, 1].
    """

    def __init__(self, num_steps: int = 50, clip_x0: bool = False) -> None:
        super().__init__(num_steps, 1, True, clip_x0)

    def steps(self, schedule: NoiseSchedule, times: Tensor) -> LinearSteps:
        log_alpha = schedule.log_alpha(torch.cat([times, times.new_zeros(1)]))
        b = 2 * log_alpha.diff()
        variance = schedule.sigma(times) ** 2
        # e = (x_t - alpha_t m) / sigma_t
        weights = b * schedule.alpha(times) / variance
        return LinearSteps(1 + b / 2 - b / variance, weights[:, None], b.sqrt())
