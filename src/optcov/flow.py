"""Likelihood of the probability-flow ODE, by the instantaneous change of variables.

In ``lambda = log(sigma_t / alpha_t)`` the ODE needs no derivative of the schedule,

    dx / dlambda = sigma e(x, t) - sigma^2 x,        div = sigma tr(de/dx) - sigma^2 d
    log p(x_min) = log N(x_max; 0, I) + integral of div over lambda

with Hutchinson's estimate ``v^T (de/dx) v`` of the trace, v of random signs, one v for the whole path of a sample.

Sources: score SDEs (arXiv:2011.13456), Eq. 13 and Appendix D.2; FFJORD (arXiv:1810.01367), Eq. 8; the trace, Hutchinson
1989.  The solver is torchdiffeq's Dormand-Prince.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from optcov.denoiser import Denoiser


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

    def solve(self, x: Tensor, probe: Tensor, advance: Callable[[], object] = lambda: None) -> Solution:
        """The log density of ``x``, ``[B, *event]``, with a probe of signs of the same shape.

        Args:
            x, probe: in the network's precision; the state of the solver is float64.
            advance: called at each network call, for a progress bar.
        """
        schedule = self.denoiser.schedule
        t_min = 1 / schedule.num_steps if self.t_min is None else self.t_min
        ends = -schedule.log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64)) / 2
        dim, calls = x[0].numel(), 0

        def velocity(noise_level: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            advance()
            sigma = (noise_level * 2).sigmoid().sqrt()  # sigma^2 / alpha^2 = exp(2 lambda)
            t = schedule.time(-2 * noise_level.cpu()).to(x.device)
            with torch.enable_grad():
                at = state[0].detach().to(x.dtype).requires_grad_()
                eps = self.denoiser(at, t).eps
                (product,) = torch.autograd.grad((eps * probe).sum(), at)
            trace = (product * probe).double().flatten(1).sum(1)
            return sigma * eps.detach().double() - sigma**2 * state[0], sigma * trace - sigma**2 * dim

        start = (x.double(), torch.zeros(len(x), dtype=torch.float64, device=x.device))
        path, divergence = odeint(
            velocity, start, ends.to(x.device), rtol=self.tolerance, atol=self.tolerance, method="dopri5"
        )
        prior = -(path[-1] ** 2).flatten(1).sum(1) / 2 - dim / 2 * math.log(2 * math.pi)
        return Solution(prior, divergence[-1], calls)
