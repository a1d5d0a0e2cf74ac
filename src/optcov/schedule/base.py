"""Forward process ``q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)``: any Gaussian path from data to noise.

Time ``t`` is float64 in [0, 1]; a schedule of N steps uses the grid ``n / N``, n = 1..N.  alpha and sigma are
amplitudes: the DDPM papers write alpha_bar = alpha_t^2 and beta_bar = sigma_t^2.  Over time alpha never increases,
sigma increases, and log SNR strictly decreases; at ``t = 0`` there is no noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optcov.schedule.levels import NoiseLevels


def at_least_one(num_steps: int) -> int:
    """Check a number of steps and return it.

    Raises:
        ValueError: if it is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1 (got {num_steps}): give the number of diffusion steps, N")
    return num_steps


class NoiseSchedule(ABC):
    """Gives the amplitudes of signal and noise at any time, in float64.

    Args:
        num_steps: N, the number of steps of the discrete process; at least 1.
    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = at_least_one(num_steps)

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Amplitude of the signal in [0, 1]; float64, shape of ``t``; 1 at ``t = 0``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Amplitude of the noise; float64, shape of ``t``; 0 at ``t = 0``."""

    def log_snr(self, t: Tensor) -> Tensor:
        """``log(alpha_t^2 / sigma_t^2)``; float64, shape of ``t``; +inf at ``t = 0``, -inf where alpha is 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; float64, any shape, clamped to [0, 1]."""

    def levels(self, t: Tensor) -> NoiseLevels:
        """Compute everything that depends only on time, for times of any shape."""
        t = t.to(torch.float64)
        return NoiseLevels(t, self.alpha(t), self.sigma(t), self.log_snr(t))

    def prior_std(self, level: NoiseLevels) -> Tensor:
        """Standard deviation of the Gaussian from which sampling starts at ``level``; float64, shape of the level."""
        return level.sigma

    def variance_between(self, s: Tensor, t: Tensor) -> Tensor:
        """Variance of ``q(x_t | x_s)``, beta_{t|s} = sigma_t^2 - alpha_{t|s}^2 sigma_s^2 (DDPM, Eq. 2 at any stride).

        Args:
            s, t: times in [0, 1] with ``s <= t``; any mutually broadcastable shapes.
        Returns:
            float64 variance, broadcast shape; 0 where ``s == t``.
        """
        # computed from SNR ratios, because sigma_t^2 - alpha_{t|s}^2 sigma_s^2 cancels over short strides
        gap = torch.where(s == t, torch.zeros_like(s + t), self.log_snr(t) - self.log_snr(s))
        return -torch.expm1(gap) * self.sigma(t) ** 2

    def grid(self, device: torch.device | str = "cpu") -> Tensor:
        """The N times ``n / N``, n = 1..N; float64."""
        return torch.arange(1, self.num_steps + 1, dtype=torch.float64, device=device) / self.num_steps

    def interpolate(self, table: Tensor, t: Tensor) -> Tensor:
        """Interpolate a table of values at ``n / N``, n = 0..N, linearly to any time.

        Args:
            table: ``[N + 1, ...]``, on the device of ``t``.
            t: times in [0, 1]; 0-dimensional or ``[B]``.
        Returns:
            ``[*t.shape, ...]`` in the table's dtype; exact on the grid, up to rounding.
        """
        position = t.to(torch.float64) * self.num_steps
        lower = position.floor().clamp(0, self.num_steps - 1).long()
        weight = (position - lower).reshape(t.shape + (1,) * (table.ndim - 1))
        # indexing with a 0-dimensional tensor would make the host wait for the device
        below, above = (
            table.index_select(0, n.reshape(-1)).reshape(t.shape + table.shape[1:]) for n in (lower, lower + 1)
        )
        return torch.lerp(below, above, weight.to(table.dtype))
