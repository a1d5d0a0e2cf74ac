"""Likelihood under the probability-flow ODE, by the instantaneous change of variables.

After scaling to ``y = x_t / norm`` with ``norm = sqrt(alpha_t^2 + sigma_t^2)``, every Gaussian path preserves variance.
Written as a function of ``lambda = log(sigma_t / alpha_t)``, the ODE needs no derivative of the schedule.  With alpha
and sigma scaled by the same factor,

    dy / dlambda = sigma e(x, t) - sigma^2 y,        div = sigma tr(de/dy) - sigma^2 d
    log p(x_min) = log N(x_max; 0, prior_std^2 I) + integral of div over lambda + d log(norm_max / norm_min)

Hutchinson's ``v^T (de/dy) v`` estimates the trace, with random signs v that are fixed along the path of a sample.

This is the density of samples drawn from the prior.  Even for an exact network it differs from the density of the data
by ``log prior(x_max) - log q(x_max)``.  For data with mean mu, at a point z standard deviations from it, the difference
is about ``alpha_max mu z / sigma_max``, of either sign (0.011 nats per dimension for mu = 0.3, z = 3 and
sigma_max = 80).  Averaged over the data it is ``-KL(q(x_max) || prior)``, which is of second order (7e-6).

Sources: score SDEs (arXiv:2011.13456), Eq. 13 and Appendix D.2; FFJORD (arXiv:1810.01367), Eq. 8; for the trace,
Hutchinson 1989.  The solver is torchdiffeq's Dormand-Prince.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.schedule.levels import NoiseLevels

LARGEST_LOG_RATIO = 12.0  # largest log(sigma / alpha); beyond it, x_t counts as a draw from the prior


@dataclass(frozen=True)
class Solution:
    """The two parts of ``log p(x_min)``, each float64 ``[B]`` in nats, and the number of network calls."""

    prior: Tensor
    divergence: Tensor
    calls: int  # network calls, each with one backward pass

    @property
    def log_density(self) -> Tensor:
        """``log p(x_min)``, ``[B]``."""
        return self.prior + self.divergence


def check_settings(t_min: float | None, tolerance: float) -> None:
    """Refuse a start time or a tolerance for which the ODE has no solution.

    Raises:
        ValueError: unless ``t_min`` is None or lies between 0 and 1, and ``tolerance`` is positive and finite.
    """
    if t_min is not None and not 0 < t_min < 1:
        raise ValueError(f"t_min must be between 0 and 1 (got {t_min}): give null for 1/N")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be positive and finite (got {tolerance}): give 1e-5, or one near it")


@dataclass(frozen=True)
class ProbabilityFlow:
    """The density on x that a denoiser's ODE between ``t_min`` and 1 defines.

    Args:
        denoiser: in eval mode.
        t_min: the time at which the data are assumed to lie; None for the first time of the grid, 1/N.
        tolerance: relative and absolute error tolerance of a solver step.  The whole batch shares one step size, so a
            sample's value depends on its batch to within the tolerance.
    Raises:
        ValueError: if a setting is out of range, or the path has no signal left to lose after ``t_min``.
    """

    denoiser: Denoiser
    t_min: float | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_settings(self.t_min, self.tolerance)
        start, end = self._log_ratio.tolist()
        if start >= end:
            raise ValueError(
                f"t_min must be a time after which signal is lost (got {float(self._first):.4g}, of a path of "
                f"{self.denoiser.schedule.num_steps} steps): give a time near 0, such as 0.001"
            )

    @property
    def _first(self) -> Tensor:
        """``t_min``, or its default 1/N; float64, 0-dimensional."""
        first = 1 / self.denoiser.schedule.num_steps if self.t_min is None else self.t_min
        return torch.tensor(first, dtype=torch.float64)

    @property
    def _log_ratio(self) -> Tensor:
        """``lambda = log(sigma / alpha)`` at the start and at the end of the ODE; float64 ``[2]``."""
        times = torch.stack([self._first, torch.ones_like(self._first)])
        return (-self.denoiser.schedule.log_snr(times) / 2).clamp(max=LARGEST_LOG_RATIO)

    def solve(
        self,
        x: Tensor,
        probe: Tensor,
        advance: Callable[[], object] = lambda: None,
        condition: Tensor | None = None,
    ) -> Solution:
        """Compute the log density of ``x``.

        Args:
            x: ``[B, *event]``, in the network's precision; the solver's state is float64.
            probe: random signs v, of the shape and precision of ``x``.
            advance: called at each network call, for a progress bar.
            condition: class of each sample, int64 ``[B]``; only for class-conditional denoisers.
        Raises:
            ValueError: if x is not finite, x or its probe does not have the data's shape, or the solver fails.
        """
        schedule, log_ratio = self.denoiser.schedule, self._log_ratio
        if x.shape[1:] != self.denoiser.data_shape or probe.shape != x.shape:
            raise ValueError(
                f"x and its probe must be batches of data of shape {list(self.denoiser.data_shape)} (got "
                f"{list(x.shape)} and {list(probe.shape)}): give one probe for each sample"
            )
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(
                f"x must be finite and of a floating-point type to have a density (got {x.dtype}, "
                f"{int((~x.isfinite()).sum())} not finite): give data in the denoiser's range, not grey levels"
            )
        ends = schedule.levels(torch.stack([self._first, schedule.time(-2 * log_ratio[1])]))
        norm, prior_std = _norm(ends), float(schedule.prior_std(ends[1]))
        dim, calls = x[0].numel(), 0

        def velocity(log_ratio: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            advance()
            sigma = (log_ratio * 2).sigmoid().sqrt()  # on the scaled path, where sigma^2 / alpha^2 = exp(2 lambda)
            level = schedule.levels(schedule.time(-2 * log_ratio.cpu())).to(x.device)
            with torch.enable_grad():
                at = state[0].detach().requires_grad_()
                eps = self.denoiser((at * _norm(level)).to(x.dtype), level, condition).eps
                (product,) = torch.autograd.grad((eps * probe).sum(), at)
            self.denoiser.cost.add(len(x), ne=2)
            trace = (product * probe).double().flatten(1).sum(1)
            return sigma * eps.detach().double() - sigma**2 * state[0], sigma * trace - sigma**2 * dim

        from torchdiffeq import odeint  # imports SciPy, which takes most of a second

        start = (x.double() / float(norm[0]), torch.zeros(len(x), dtype=torch.float64, device=x.device))
        try:
            path, divergence = odeint(
                velocity, start, log_ratio.to(x.device), rtol=self.tolerance, atol=self.tolerance, method="dopri5"
            )
        except AssertionError as error:  # raised when the step size underflows or the state is not finite
            raise ValueError(
                f"the mean network must answer smoothly and with finite numbers for the ODE to be solved ({error}): "
                "train longer, take network weights in float32, or raise t_min or the tolerance"
            ) from error
        last = path[-1] * float(norm[1] / prior_std)
        prior = -(last**2).flatten(1).sum(1) / 2 - dim * (math.log(2 * math.pi) / 2 + math.log(prior_std))
        return Solution(prior, divergence[-1] + dim * float((norm[1] / norm[0]).log()), calls)


def _norm(level: NoiseLevels) -> Tensor:
    return (level.alpha**2 + level.sigma**2).sqrt()
