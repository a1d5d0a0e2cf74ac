r"""Euler's method in EDM's coordinates ``x / alpha`` and ``sigma / alpha``, with or without churn.

Without churn it is DDIM with eta = 0.  Source: EDM (arXiv:2206.00364), Eq. 4 and Algorithm 2 without its correction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optcov.sampler.single_step import Call, SingleStepSampler, last_call
from optcov.schedule.base import NoiseSchedule


class EulerSampler(SingleStepSampler):
    """``x_s / alpha_s = x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) e``.

    Churn first raises the noise of a step from ``sigma_hat = sigma_t / alpha_t`` to ``(1 + gamma) sigma_hat``,
    ``gamma = min(churn / K, sqrt(2) - 1)``, by fresh noise; never above that of t = 1, where networks end.

    Args:
        num_steps: K.
        churn: EDM's S_churn, not negative; 0 for the deterministic solver.
        churn_min, churn_max: the sigma_hat between which noise is added, EDM's S_min and S_max; None for no
            upper bound.
        churn_noise: EDM's S_noise, the standard deviation of what is added in units of what is due.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_steps: int = 50,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float | None = None,
        churn_noise: float = 1.0,
    ) -> None:
        super().__init__(num_steps)
        if churn < 0:
            raise ValueError(f"sampler.churn = {churn} adds no noise: give 0 for none, or a positive number")
        if churn_min < 0 or (churn_max is not None and churn_max < churn_min):
            raise ValueError(
                f"sampler.churn_min = {churn_min} and sampler.churn_max = {churn_max} bound no noise levels: "
                "give 0 <= churn_min <= churn_max, or churn_max=null for no bound"
            )
        if churn_noise < 0:
            raise ValueError(f"sampler.churn_noise = {churn_noise} is no standard deviation: give 1, or a little more")
        self.churn, self.churn_min, self.churn_noise = churn, churn_min, churn_noise
        self.churn_max = math.inf if churn_max is None else churn_max

    def raised(self, schedule: NoiseSchedule, times: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """Times after churn, ``[K]``, and what to add at each: ``(scale, amplitude)``, or None where nothing is due."""
        if self.churn == 0:
            return times, [None] * len(times)
        ratio = (-schedule.log_snr(times) / 2).exp()
        within = (ratio >= self.churn_min) & (ratio <= self.churn_max)
        gamma = torch.where(within, min(self.churn / len(times), math.sqrt(2) - 1), 0.0)
        raised = torch.where(within, schedule.time(-2 * (ratio * (1 + gamma)).log()), times).maximum(times)
        alpha, higher = schedule.alpha(raised), (-schedule.log_snr(raised) / 2).exp()
        amplitude = self.churn_noise * alpha * (higher**2 - ratio**2).clamp(min=0).sqrt()
        scale = alpha / schedule.alpha(times)
        return raised, [(scale[i], amplitude[i]) if bool(within[i]) else None for i in range(len(times))]

    def calls(self, schedule: NoiseSchedule, times: Tensor) -> list[Call]:
        raised, churn = self.raised(schedule, times)
        calls = [
            call
            for t, s, added in zip(raised.flip(0), times.flip(0)[1:], reversed(churn), strict=False)
            for call in self.step(schedule, t, s, added)
        ]
        return [*calls, last_call(raised[0], churn[0])]

    def step(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, churn: tuple[Tensor, Tensor] | None
    ) -> tuple[Call, ...]:
        """The calls of the step from ``t`` to ``s > 0``."""
        keep = schedule.alpha(s) / schedule.alpha(t)
        return (Call(t, keep, (schedule.sigma(s) - keep * schedule.sigma(t),), True, churn),)
