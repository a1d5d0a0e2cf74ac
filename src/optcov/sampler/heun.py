"""Heun's method in EDM's coordinates, with or without churn.  Source: EDM (arXiv:2206.00364), Algorithms 1 and 2."""

from __future__ import annotations

from torch import Tensor

from optcov.sampler.euler import ChurnSampler
from optcov.sampler.single_step import Call
from optcov.schedule.levels import NoiseLevels


class HeunSampler(ChurnSampler):
    """Euler's step, then again with the average of the predictions at both ends; Euler alone in the step to 0.

    Second order; ``2 K - 1`` network calls for K steps, and one fewer from a time without any signal, whose step is
    Euler's.  Arguments as in `ChurnSampler`.
    """

    def calls_of_step(self, t: NoiseLevels, s: NoiseLevels, churn: tuple[Tensor, Tensor] | None) -> tuple[Call, ...]:
        keep = s.alpha / t.alpha
        change = s.sigma - keep * t.sigma
        return Call(t, keep, (change,), False, churn), Call(s, keep, (change / 2, change / 2), True)
