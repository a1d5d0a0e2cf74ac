"""Likelihood of the probability-flow ODE, by the instantaneous change of variables.

Scaled to ``y = x_t / norm`` with ``norm = sqrt(alpha_t^2 + sigma_t^2)``, every Gaussian path preserves variance, and in
``lambda = log(sigma_t / alpha_t)`` the ODE needs no derivative of the schedule: with alpha and sigma scaled alike,

    dy / dlambda = sigma e(x, t) - sigma^2 y,        div = sigma tr(de/dy) - sigma^2 d
    log p(x_min) = log N(x_max; 0, prior_std^2 I) + integral of div over lambda + d log(norm_max / norm_min)

with Hutchinson's estimate ``v^T (de/dy) v`` of the trace, v of random signs, one v for the whole path of a sample.

This is the density of what a chain draws that starts from the prior.  It differs from the density of the data, even for
an exact network, by ``log prior(x_max) - log q(x_max)``: for data of mean mu, z standard deviations away from it, about
``alpha_max mu z / sigma_max``, of either sign (0.011 nats a dimension for mu = 0.3, z = 3 and sigma_max = 80), and on
average over data ``-KL(q(x_max) || prior)``, of second order (7e-6).

Sources: score SDEs (arXiv:2011.13456), Eq. 13 and Appendix D.2; FFJORD (arXiv:1810.01367), Eq. 8; the trace, Hutchinson
1989.  The solver is torchdiffeq's Dormand-Prince.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.schedule.levels import NoiseLevels

LARGEST_LOG_RATIO = 12.0  # of sigma / alpha: where less signal is left, x_t is taken for the prior's


@dataclass(frozen=True)
class Solution:
    """Parts of ``log p(x_min)``, each float64 ``[B]`` in nats, and what they cost."""

    prior: Tensor
    divergence: Tensor
    calls: int  # of the network, each with one backward pass

    @property
    def log_density(self) -> Tensor:
        """``log p(x_min)``, ``[B]``."""
        return self.prior + self.divergence


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE of a denoiser between ``t_min`` and 1, as a density on x.

    Args:
        denoiser: in eval mode.
        t_min: where the data are taken to live; None for the first time of the grid, 1/N.
        tolerance: relative and absolute, of a step of the solver; one step size serves a whole batch, so that a
            sample's value depends on its batch within the tolerance.
    """

    denoiser: Denoiser
    t_min: float | None = None
    tolerance: float = 1e-5

    def solve(
        self,
        x: Tensor,
        probe: Tensor,
        advance: Callable[[], object] = lambda: None,
        condition: Tensor | None = None,
    ) -> Solution:
        """The log density of ``x``, ``[B, *event]``, with a probe of signs of the same shape.

        Args:
            x, probe: in the network's precision; the state of the solver is float64.
            advance: called at each network call, for a progress bar.
            condition: labels, int64 ``[B]``, for a denoiser that knows classes.
        """
        schedule = self.denoiser.schedule
        t_min = 1 / schedule.num_steps if self.t_min is None else self.t_min
        ends = schedule.levels(torch.tensor([t_min, 1.0], dtype=torch.float64))
        log_ratio = (-ends.log_snr / 2).clamp(max=LARGEST_LOG_RATIO)
        ends = schedule.levels(torch.stack([ends.t[0], schedule.time(-2 * log_ratio[1])]))
        norm, prior_std = _norm(ends), float(schedule.prior_std(ends[1]))
        dim, calls = x[0].numel(), 0

        def velocity(log_ratio: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            advance()
            sigma = (log_ratio * 2).sigmoid().sqrt()  # of the scaled path: sigma^2 / alpha^2 = exp(2 lambda)
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
        path, divergence = odeint(
            velocity, start, log_ratio.to(x.device), rtol=self.tolerance, atol=self.tolerance, method="dopri5"
        )
        last = path[-1] * float(norm[1] / prior_std)
        prior = -(last**2).flatten(1).sum(1) / 2 - dim * (math.log(2 * math.pi) / 2 + math.log(prior_std))
        return Solution(prior, divergence[-1] + dim * float((norm[1] / norm[0]).log()), calls)


def _norm(level: NoiseLevels) -> Tensor:
    return (level.alpha**2 + level.sigma**2).sqrt()
