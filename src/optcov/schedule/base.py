"""Forward process ``q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)``, variance preserving.

Time ``t`` is float64 in [0, 1]; a schedule of N steps lives on the grid ``n / N``, n = 1..N.  alpha and sigma are
amplitudes: the DDPM papers write alpha_bar = alpha_t^2 and beta_bar = sigma_t^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optcov.chain import once_per_chain


def at_least_one(num_steps: int) -> int:
    """The number of steps, if it is one.

    Raises:
        ValueError: if it is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not a number of diffusion steps: give at least 1")
    return num_steps


class NoiseSchedule(ABC):
    """The amplitudes of signal and noise at every time, in float64.

    Args:
        num_steps: N, the number of steps of the discrete process; at least 1.
    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = at_least_one(num_steps)

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal's amplitude; float64, shape of ``t``; 0 at ``t = 0``."""

    @once_per_chain
    def alpha(self, t: Tensor) -> Tensor:
        """Amplitude of the signal in (0, 1]; float64, shape of ``t``."""
        return self.log_alpha(t).exp()

    @once_per_chain
    def sigma(self, t: Tensor) -> Tensor:
        """Amplitude of the noise in [0, 1), sqrt(1 - alpha_t^2); float64, shape of ``t``."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    @once_per_chain
    def log_snr(self, t: Tensor) -> Tensor:
        """``log(alpha_t^2 / sigma_t^2)``; float64, shape of ``t``; +inf at ``t = 0``."""
        twice = 2 * self.log_alpha(t)
        return twice - (-torch.expm1(twice)).log()

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of :meth:`log_alpha`; float64, any shape; values below ``log_alpha(1)`` give 1."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: where a signal-to-noise ratio is met; float64, any shape, in [0, 1].

        ``alpha_t^2 = sigmoid(log_snr)``, as the schedule preserves variance.
        """
        return self.time_of_log_alpha(torch.nn.functional.logsigmoid(log_snr.to(torch.float64)) / 2)

    def variance_between(self, s: Tensor, t: Tensor) -> Tensor:
        """Variance of ``q(x_t | x_s)``, beta_{t|s} = sigma_t^2 - alpha_{t|s}^2 sigma_s^2 (DDPM, Eq. 2 at any stride).

        Args:
            s, t: times in [0, 1] with ``s <= t``; any mutually broadcastable shapes.
        Returns:
            float64 variance, broadcast shape; 0 where ``s == t``.
        """
        return -torch.expm1(2 * (self.log_alpha(t) - self.log_alpha(s)))

    def grid(self, device: torch.device | str = "cpu") -> Tensor:
        """The N times ``n / N``, n = 1..N; float64."""
        return torch.arange(1, self.num_steps + 1, dtype=torch.float64, device=device) / self.num_steps

    @once_per_chain
    def interpolate(self, table: Tensor, t: Tensor) -> Tensor:
        """Read a table kept at ``n / N``, n = 0..N, at any time, linearly between its nodes.

        Args:
            table: ``[N + 1, ...]``, on the device of ``t``.
            t: times in [0, 1]; 0-dimensional or ``[B]``.
        Returns:
            ``[*t.shape, ...]`` in the table's dtype, exact on the grid up to rounding.
        """
        position = t.to(torch.float64) * self.num_steps
        lower = position.floor().clamp(0, self.num_steps - 1).long()
        weight = (position - lower).reshape(t.shape + (1,) * (table.ndim - 1))
        # table[n] with a 0-dimensional n would wait for n on the host
        below, above = (
            table.index_select(0, n.reshape(-1)).reshape(t.shape + table.shape[1:]) for n in (lower, lower + 1)
        )
        return torch.lerp(below, above, weight.to(table.dtype))


class DiscreteSchedule(NoiseSchedule):
    """A schedule given by the variances of its N steps; log alpha is linear in t between them (as in DPM-Solver).

    Args:
        beta: float64 ``[N]``, beta_n = Var of ``q(x_n | x_{n-1})``, each in (0, 1).
    Raises:
        ValueError: if a beta lies outside (0, 1).
    """

    def __init__(self, beta: Tensor) -> None:
        super().__init__(len(beta))
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(
                f"num_steps = {len(beta)} gives this schedule step variances from {float(beta.min()):.3g} to "
                f"{float(beta.max()):.3g}, which must lie above 0 and below 1: take more steps, or schedule=cosine or "
                "schedule=vp_sde, which hold for any number"
            )
        table = torch.cat([beta.new_zeros(1), 0.5 * torch.log1p(-beta).cumsum(0)])
        self._log_alpha = {table.device: table}

    def log_alpha(self, t: Tensor) -> Tensor:
        if t.device not in self._log_alpha:  # one copy per device, so that a sampling loop never waits for the host
            self._log_alpha[t.device] = next(iter(self._log_alpha.values())).to(t.device)
        return self.interpolate(self._log_alpha[t.device], t)

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        self.log_alpha(log_alpha.new_zeros(()))  # puts a copy of the table on this device
        falling = -self._log_alpha[log_alpha.device]
        lower = (torch.searchsorted(falling, -log_alpha.contiguous()) - 1).clamp(0, self.num_steps - 1)
        weight = (-log_alpha - falling[lower]) / (falling[lower + 1] - falling[lower])
        return (lower + weight.clamp(0, 1)) / self.num_steps
