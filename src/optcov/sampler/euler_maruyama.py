r"""Euler-Maruyama steps of the reverse VP-SDE.

    dx = (-beta/2 x - beta grad log q_t(x)) dt + sqrt(beta) dw,     grad log q_t(x) = -e / sigma_t

A step goes backwards from t to s; ``b = int_s^t beta(u) du = 2 log(alpha_s / alpha_t)`` is exact on every schedule.

Source: Score SDEs (arXiv:2011.13456), Eq. 6, 11 and Appendix E.
"""

from __future__ import annotations

import torch

from optcov.ranges import Steps
from optcov.sampler.multistep import LinearPlan, LinearSampler
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels
from optcov.schedule.vp import VPSchedule


class EulerMaruyamaSampler(LinearSampler):
    """``x_s = (1 + b/2) x_t - b e / sigma_t + sqrt(b) z``; the step to 0 returns m without noise.

    The SDE prescribes the noise; a variance strategy has no influence.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        clip_x0: clamp the predicted x_0 to the data's range.
    """

    schedules = VPSchedule

    def __init__(self, num_steps: Steps = 50, clip_x0: bool = False) -> None:
        super().__init__(num_steps, 1, True, clip_x0)

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        assert isinstance(schedule, VPSchedule)
        b = 2 * schedule.log_alpha(torch.cat([levels.t, levels.t.new_zeros(1)])).diff()
        variance = levels.sigma**2
        # e = (x_t - alpha_t m) / sigma_t
        weights = b * levels.alpha / variance
        return LinearPlan(levels, 1 + b / 2 - b / variance, weights[:, None], b.sqrt())
