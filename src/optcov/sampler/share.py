r"""Noise on the mean of a multistep solver: the share of ``c^2 C`` that makes the trace of the marginal right.

The moment-matched kernel draws ``N(0, c^2 C)`` around DDIM's mean, a step of order 1 (`optcov.kernel` at eta = 0), and
has the right marginal if C is ``Cov[x_0|x_t]``.  A solver of higher order extrapolates: its mean moves more, and
leaves less to the noise, or nothing.  With

    A       the step of order 1 from x_t            B    what the extrapolation adds to it
    q_s = alpha_s^2 tr Cov[x_0] + sigma_s^2 d            the trace of the exact marginal
    V(theta) = tr Cov[A + theta B]                       that of the mean, extrapolated in part
    N = E[tr c^2 C]                                      that of the noise, which is independent of the mean

the chain has the right trace at s if ``V(theta) + kappa N = q_s``.  For Gaussian data and theta = 0 this is solved by
``kappa = 1``, at any stride.  At theta = 1, a step of order p misses the marginal by O(h^{p+1}) in
``h = lambda_s - lambda_t``, and N is O(h^2), so that ``kappa = O(h^{p-1})``, of either sign: 1 for p = 1, and near 0
for higher orders and many steps.  Over few steps and near the data it is often far below 0: solvers of order 2 and 3
overshoot there, which no noise can repair.

    matched     theta = 1, kappa = clamp((q_s - V(1)) / N, 0, 1)
    balanced    the same where ``V(1) <= q_s``; elsewhere kappa = 0 and the theta in [0, 1] at which ``V(theta) = q_s``

V is a parabola in theta, whose coefficients and N are measured on chains of the sampler itself, one step after another,
so that the noise of earlier steps counts.  What the chains drew by chance at the start is divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

NoiseChoice = Literal["none", "full", "matched", "balanced"]
FIXED = {"none": 0.0, "full": 1.0}
FITTED = ("matched", "balanced")


@dataclass(frozen=True)
class Shares:
    """What the steps of a chain add and extrapolate: kappa and theta of each step, in [0, 1]."""

    noise: tuple[float, ...]
    extrapolation: tuple[float, ...]

    def then(self, share: float, theta: float) -> Shares:
        """These, and those of one more step."""
        return Shares((*self.noise, share), (*self.extrapolation, theta))


@dataclass(frozen=True)
class MatchedShare:
    """kappa and theta of a step, and the trace ``V(theta) + kappa N`` that they give."""

    share: float
    theta: float
    trace: float


def matched_share(
    x_t: Tensor, mean: Tensor, extrapolation: Tensor, drawn: Tensor, trace: float, target: float, balanced: bool
) -> MatchedShare:
    """Find kappa and theta of a step from chains; see this module's docstring.

    Args:
        x_t: where the chains were before the step, ``[n, *event]``.
        mean: A + B, where the solver takes them.
        extrapolation: B.
        drawn: draws from ``N(0, c^2 C)``.
        trace: ``tr Cov[x_t]`` of such chains as it is without chance.
        target: q_s.
        balanced: whether to look for theta where the mean alone has too large a trace.
    """
    scale = trace / _trace(x_t, x_t)
    whole = scale * _trace(mean, mean)
    added = float(drawn.double().square().flatten(1).sum(1).mean())
    if whole <= target:
        share = min(1.0, (target - whole) / added) if added > 0 else 0.0
        return MatchedShare(share, 1.0, whole + share * added)
    if not balanced:
        return MatchedShare(0.0, 1.0, whole)
    # V at theta = 1 - u is whole - 2 u slope + u^2 curvature
    slope, curvature = scale * _trace(mean, extrapolation), scale * _trace(extrapolation, extrapolation)
    if slope <= 0 or curvature <= 0:  # a shorter extrapolation would not lower it
        return MatchedShare(0.0, 1.0, whole)
    root = slope**2 - curvature * (whole - target)
    u = min(1.0, (whole - target) / (slope + math.sqrt(root)) if root > 0 else slope / curvature)
    return MatchedShare(0.0, 1 - u, whole - 2 * u * slope + u**2 * curvature)


def _trace(one: Tensor, other: Tensor) -> float:
    """``tr Cov`` of two batches."""
    one, other = (each.double() - each.double().mean(0) for each in (one, other))
    return float((one * other).flatten(1).sum(1).mean())
