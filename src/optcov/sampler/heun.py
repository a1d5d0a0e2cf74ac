"""Heun's method in EDM's coordinates, with or without churn.  Source: EDM (arXiv:2206.00364), Algorithms 1 and 2."""

from __future__ import annotations

from torch import Tensor

from optcov.sampler.euler import EulerSampler
from optcov.sampler.single_step import Call
from optcov.schedule.base import NoiseSchedule


class HeunSampler(EulerSampler):
    """Euler's step, then again with the average of the predictions at both ends; Euler alone in the step to 0.

    Second order; ``2 K - 1`` network calls for K steps.  Arguments as in :class:`EulerSampler`.
    """

    def network_calls(self, times: Tensor) -> int:
        return 2 * len(times) - 1

    def step(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, churn: tuple[Tensor, Tensor] | None
    ) -> tuple[Call, ...]:
        keep = schedule.alpha(s) / schedule.alpha(t)
        change = schedule.sigma(s) - keep * schedule.sigma(t)
        return Call(t, keep, (change,), False, churn), Call(s, keep, (change / 2, change / 2), True)
