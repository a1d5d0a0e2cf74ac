r"""Euler's method in EDM's coordinates ``x / alpha`` and ``sigma / alpha``, with or without churn.

Without churn this is DDIM with eta = 0.

Source: EDM (arXiv:2206.00364), Eq. 4, and Algorithm 2 without its correction step.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod

import torch
from torch import Tensor

from optcov.ranges import NonNegative, Steps
from optcov.sampler.single_step import Call, SingleStepSampler, last_call
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels


class ChurnSampler(SingleStepSampler):
    """Steps in EDM's coordinates, with or without churn.

    Before a step, churn adds fresh noise, which raises ``sigma_hat = sigma_t / alpha_t`` to ``(1 + gamma) sigma_hat``,
    ``gamma = min(churn / K, sqrt(2) - 1)``.  The level never exceeds that of t = 1, the last that networks know.

    Args:
        num_steps: K, the number of times visited.
        churn: EDM's S_churn, not negative; 0 for the deterministic solver.
        churn_min, churn_max: noise is added only for sigma_hat in this range, EDM's S_min and S_max; None for no upper
            bound.
        churn_noise: EDM's S_noise, a factor on the standard deviation of the added noise.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_steps: Steps = 50,
        churn: NonNegative = 0.0,
        churn_min: NonNegative = 0.0,
        churn_max: NonNegative | None = None,
        churn_noise: NonNegative = 1.0,
    ) -> None:
        super().__init__(num_steps)
        if churn < 0:
            raise ValueError(f"sampler.churn must not be negative (got {churn}): give 0 for no churn, or more")
        if churn_min < 0:
            raise ValueError(f"sampler.churn_min must not be negative (got {churn_min}): give 0 for no lower bound")
        if churn_max is not None and churn_max < churn_min:
            raise ValueError(
                f"sampler.churn_max must be at least sampler.churn_min = {churn_min} (got {churn_max}): give a higher "
                "noise level, or null for no upper bound"
            )
        if churn_noise < 0:
            raise ValueError(f"sampler.churn_noise must not be negative (got {churn_noise}): give 1, or a little more")
        self.churn, self.churn_min, self.churn_noise = churn, churn_min, churn_noise
        # the bound stays finite, because at infinity no signal is left to which the noise could be relative
        self.churn_max = sys.float_info.max if churn_max is None else churn_max

    def raised(
        self, schedule: NoiseSchedule, levels: NoiseLevels
    ) -> tuple[NoiseLevels, list[tuple[Tensor, Tensor] | None]]:
        """Levels after churn, ``[K]``, and for each the ``(scale, amplitude)`` of the noise to add, or None."""
        if self.churn == 0:
            return levels, [None] * len(levels)
        ratio = (-levels.log_snr / 2).exp()
        within = (ratio >= self.churn_min) & (ratio <= self.churn_max)
        gamma = min(self.churn / len(levels), math.sqrt(2) - 1) * within.double()
        times = torch.where(within, schedule.time(-2 * (ratio * (1 + gamma)).log()), levels.t).maximum(levels.t)
        raised = schedule.levels(times)
        higher = (-raised.log_snr / 2).exp()
        amplitude = self.churn_noise * raised.alpha * (higher**2 - ratio**2).clamp(min=0).sqrt()
        scale = raised.alpha / levels.alpha
        return raised, [(scale[i], amplitude[i]) if bool(within[i]) else None for i in range(len(levels))]

    def calls(self, schedule: NoiseSchedule, levels: NoiseLevels) -> list[Call]:
        raised, churn = self.raised(schedule, levels)
        steps = zip(raised[:-1], levels[1:], churn[:-1], strict=True)
        calls = [call for t, s, added in steps for call in self.calls_of_step(t, s, added)]
        return [*calls, last_call(raised[-1], churn[-1])]

    @abstractmethod
    def calls_of_step(self, t: NoiseLevels, s: NoiseLevels, churn: tuple[Tensor, Tensor] | None) -> tuple[Call, ...]:
        """The network calls of a step from ``t`` to ``s``, both above 0; churn is added before the first call."""


class EulerSampler(ChurnSampler):
    """``x_s / alpha_s = x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) e``; arguments as in the base class."""

    def calls_of_step(self, t: NoiseLevels, s: NoiseLevels, churn: tuple[Tensor, Tensor] | None) -> tuple[Call, ...]:
        keep = s.alpha / t.alpha
        return (Call(t, keep, (s.sigma - keep * t.sigma,), True, churn),)
