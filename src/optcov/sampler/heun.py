"""Heun's method in EDM's coordinates, with or without churn.  Source: EDM (arXiv:2206.00364), Algorithms 1 and 2."""

from __future__ import annotations

from torch import Tensor

from optcov.sampler.euler import ChurnSampler
from optcov.sampler.single_step import Call
from optcov.schedule.levels import NoiseLevels


class HeunSampler(ChurnSampler):
    """Takes an Euler step, then repeats it with the average of the predictions at both ends (second order).

    The step to 0, and a step from a time without any signal, is Euler's alone.  K steps make ``2 K - 1`` network calls,
    or one fewer if the first time has no signal.  Arguments as in `ChurnSampler`.
    """

    def calls_of_step(self, t: NoiseLevels, s: NoiseLevels, churn: tuple[Tensor, Tensor] | None) -> tuple[Call, ...]:
        keep = s.alpha / t.alpha
        change = s.sigma - keep * t.sigma
        return Call(t, keep, (change,), False, churn), Call(s, keep, (change / 2, change / 2), True)
