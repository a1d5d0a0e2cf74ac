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
    shaped      this theta, and the kappa that brings the whole covariance nearest to that of the marginal

V is a parabola in theta, whose coefficients and N are measured on chains of the sampler itself, one step after another,
so that the noise of earlier steps counts.  What the chains drew by chance at the start is divided out.

A trace does not say where variance is missing.  Noise of independent pixels fills up the trace that a stroke lacks, but
puts it where nothing lacks.  With the covariances ``Q = alpha_s^2 Cov[x_0] + sigma_s^2 I``, V and N as matrices, the
divergence of Gaussian marginals is, to second order, ``KL = |Q^{-1/2} (V + kappa N - Q) Q^{-1/2}|_F^2 / 4``, least at

    kappa = <Q^{-1} (Q - V) Q^{-1}, N> / <Q^{-1} N Q^{-1}, N>,    clamped to [0, 1]

which for Gaussian data and theta = 0 is 1 too, for ``Q - V = N``, and 0 where N has no part in what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optcov.schedule.levels import NoiseLevels

NoiseChoice = Literal["none", "full", "matched", "balanced", "shaped"]
FIXED = {"none": 0.0, "full": 1.0}


@dataclass(frozen=True)
class Shares:
    """What the steps of a chain add and extrapolate: kappa and theta of each step, in [0, 1]."""

    noise: tuple[float, ...]
    extrapolation: tuple[float, ...]

    def then(self, share: float, theta: float) -> Shares:
        """These, and those of one more step."""
        return Shares((*self.noise, share), (*self.extrapolation, theta))


class Marginals:
    """The covariances ``Q = alpha^2 Cov[x_0] + sigma^2 I`` of the marginals, from few clean data or of any dimension.

    Args:
        root: rows whose outer products add up to ``Cov[x_0]``, ``[n, d]``.
    """

    def __init__(self, root: Tensor) -> None:
        _, scales, self.axes = torch.linalg.svd(root.double(), full_matrices=False)
        self.variances, self.dim = scales**2, root.shape[1]

    @classmethod
    def of(cls, x_0: Tensor) -> Marginals:
        """Those of clean data, ``[n, *event]``, at least two."""
        flat = x_0.flatten(1).double()
        return cls((flat - flat.mean(0)) / (len(flat) - 1) ** 0.5)

    def trace(self, level: NoiseLevels) -> float:
        """``tr Q`` at a level."""
        return float(level.alpha**2 * self.variances.sum() + level.sigma**2 * self.dim)

    def solve(self, level: NoiseLevels, rows: Tensor) -> Tensor:
        """``Q^{-1} v`` of each row, float64 ``[m, d]``."""
        alpha, sigma = level.alpha.to(rows.device), level.sigma.to(rows.device)
        shrunk = 1 / (alpha**2 * self.variances + sigma**2) - 1 / sigma**2
        solved: Tensor = rows / sigma**2 + (rows @ self.axes.T * shrunk) @ self.axes
        return solved


@dataclass(frozen=True)
class StepChains:
    """What chains did in a step.

    Args:
        x_t: where they were before it, ``[n, *event]``.
        mean: A + B, where the solver takes them.
        extrapolation: B.
        drawn: draws from ``N(0, c^2 C)``.
        trace: ``tr Cov[x_t]`` of such chains as it is without chance.
        marginals: of the data.
        level: of x_s.
    """

    x_t: Tensor
    mean: Tensor
    extrapolation: Tensor
    drawn: Tensor
    trace: float
    marginals: Marginals
    level: NoiseLevels

    @property
    def scale(self) -> float:
        """The trace without chance over that of the chains."""
        return self.trace / _trace(self.x_t, self.x_t)

    @property
    def added(self) -> float:
        """N."""
        return float(self.drawn.double().square().flatten(1).sum(1).mean())


@dataclass(frozen=True)
class StepShare:
    """kappa and theta of a step, and the trace ``V(theta) + kappa N`` that they give."""

    share: float
    theta: float
    trace: float


def matched(chains: StepChains) -> StepShare:
    """The share of noise that makes the trace right, if there is one."""
    target, added = chains.marginals.trace(chains.level), chains.added
    whole = chains.scale * _trace(chains.mean, chains.mean)
    share = min(1.0, max(0.0, target - whole) / added) if added > 0 else 0.0
    return StepShare(share, 1.0, whole + share * added)


def balanced(chains: StepChains) -> StepShare:
    """The same, or the extrapolation that makes the trace right."""
    target = chains.marginals.trace(chains.level)
    whole = chains.scale * _trace(chains.mean, chains.mean)
    # V at theta = 1 - u is whole - 2 u slope + u^2 curvature
    slope = chains.scale * _trace(chains.mean, chains.extrapolation)
    curvature = chains.scale * _trace(chains.extrapolation, chains.extrapolation)
    if whole <= target or slope <= 0 or curvature <= 0:  # a shorter extrapolation would not lower it
        return matched(chains)
    root = slope**2 - curvature * (whole - target)
    u = min(1.0, (whole - target) / (slope + math.sqrt(root)) if root > 0 else slope / curvature)
    return StepShare(0.0, 1 - u, whole - 2 * u * slope + u**2 * curvature)


def shaped(chains: StepChains) -> StepShare:
    """The extrapolation of `balanced`, and the share that brings the covariance nearest to the marginal's."""
    by_trace = balanced(chains)
    mean = (chains.mean - (1 - by_trace.theta) * chains.extrapolation).flatten(1).double()
    drawn = chains.drawn.flatten(1).double()
    solved = chains.marginals.solve(chains.level, drawn)
    products = drawn @ solved.T
    wanted = products.diagonal().mean()  # <Q^{-1} Q Q^{-1}, N>
    there = chains.scale * ((mean - mean.mean(0)) @ solved.T).square().mean()  # <Q^{-1} V Q^{-1}, N>
    count = len(drawn)
    # pairs of a draw with itself would add the noise of N's estimate
    size = (products.square().sum() - products.diagonal().square().sum()) / (count * (count - 1))
    share = min(1.0, max(0.0, float((wanted - there) / size))) if size > 0 else 0.0
    return StepShare(share, by_trace.theta, by_trace.trace + (share - by_trace.share) * chains.added)


FITTED: dict[str, Callable[[StepChains], StepShare]] = {"matched": matched, "balanced": balanced, "shaped": shaped}


def _trace(one: Tensor, other: Tensor) -> float:
    """``tr Cov`` of two batches."""
    one, other = (each.double() - each.double().mean(0) for each in (one, other))
    return float((one * other).flatten(1).sum(1).mean())
