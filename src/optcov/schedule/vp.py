"""Variance-preserving paths, ``alpha_t^2 + sigma_t^2 = 1``, such as DDPM's and the VP-SDE's."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels


class VPSchedule(NoiseSchedule):
    """A path defined by the logarithm of its signal amplitude; the noise follows from it.

    Args:
        num_steps: N, the number of steps of the discrete process; at least 1.
    """

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal amplitude; float64, shape of ``t``; 0 at ``t = 0``."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of `log_alpha`; float64, any shape; values below ``log_alpha(1)`` give 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        twice = 2 * self.log_alpha(t)
        return twice - (-torch.expm1(twice)).log()

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha_t^2 = sigmoid(log_snr), because the path preserves variance
        return self.time_of_log_alpha(torch.nn.functional.logsigmoid(log_snr.to(torch.float64)) / 2)

    def prior_std(self, level: NoiseLevels) -> Tensor:
        """1, because the published samplers for these paths start from white noise at any time."""
        return torch.ones_like(level.sigma)

    def variance_between(self, s: Tensor, t: Tensor) -> Tensor:
        return -torch.expm1(2 * (self.log_alpha(t) - self.log_alpha(s)))


def rescaled(beta: Tensor) -> Tensor:
    """Betas ``[N]`` of a 1000-step process as those of N steps, ``beta * 1000 / N`` (Improved DDPM, arXiv:2102.09672).

    Raises:
        ValueError: if N is so small that one reaches 1.
    """
    beta = beta * 1000 / len(beta)
    if 1 <= float(beta.max()) < math.inf:
        raise ValueError(
            f"num_steps must be larger (got {len(beta)}): it gives this schedule step variances of up to "
            f"{float(beta.max()):.3g}, which must lie below 1; take more steps, or schedule=cosine or schedule=vp_sde, "
            "which hold for any number"
        )
    return beta


class DiscreteSchedule(VPSchedule):
    """A schedule defined by the variances of its N steps; log alpha is linear in t between them (as in DPM-Solver).

    Args:
        beta: float64 ``[N]``, beta_n = Var of ``q(x_n | x_{n-1})``, each in (0, 1).
        last_alpha_sq: alpha_1^2 to use if the last beta is 1; None to refuse such a beta.
    Raises:
        ValueError: if a beta is not a number in (0, 1).
    """

    def __init__(self, beta: Tensor, last_alpha_sq: float | None = None) -> None:
        super().__init__(len(beta))
        ends = last_alpha_sq is not None and bool(beta[-1] == 1)
        if not bool(((beta > 0) & (beta < 1))[: -1 if ends else None].all()):
            raise ValueError(
                f"betas must be finite and lie between 0 and 1 (got {float(beta.min()):.4g} to "
                f"{float(beta.max()):.4g}): give the variance of each step, q(x_n | x_(n-1)), first step first"
            )
        table = torch.cat([beta.new_zeros(1), 0.5 * torch.log1p(-beta).cumsum(0)])
        if ends and last_alpha_sq is not None:
            table[-1] = 0.5 * math.log(last_alpha_sq)
        self._log_alpha = {table.device: table}

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.interpolate(self._table_on(t.device), t)

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        falling = -self._table_on(log_alpha.device)
        lower = (torch.searchsorted(falling, -log_alpha.contiguous()) - 1).clamp(0, self.num_steps - 1)
        weight = (-log_alpha - falling[lower]) / (falling[lower + 1] - falling[lower])
        return (lower + weight.clamp(0, 1)) / self.num_steps

    def _table_on(self, device: torch.device) -> Tensor:
        """The table on a device; one copy is kept per device, so that a sampling loop never waits for the host."""
        if device not in self._log_alpha:
            self._log_alpha[device] = next(iter(self._log_alpha.values())).to(device)
        return self._log_alpha[device]
