r"""The reverse kernel of one step from ``t`` to ``s``, for any covariance and on any Gaussian path.

With ``m = E[x_0|x_t]``, ``e = E[eps|x_t]`` and ``C = Cov[x_0|x_t]``, the moment-matched Gaussian has

    mean     = alpha_s m + sqrt(sigma_s^2 - lambda^2) e
    Sigma    = lambda^2 I + c^2 C,   c = alpha_s - sqrt(sigma_s^2 - lambda^2) alpha_t / sigma_t
    lambda^2 = eta^2 beta_{t|s} sigma_s^2 / sigma_t^2                eta = 1: DDPM, eta = 0: DDIM

The code uses ``rho = (alpha_t / sigma_t) / (alpha_s / sigma_s)`` in [0, 1), the ratio of signal-to-noise amplitudes.
In terms of rho nothing cancels, over long strides or short ones:

    beta_{t|s} = sigma_t^2 (1 - rho^2)           sqrt(sigma_s^2 - lambda^2) = sigma_s g,  g^2 = 1 - eta^2 (1 - rho^2)
    lambda^2   = eta^2 sigma_s^2 (1 - rho^2)     c = alpha_s (1 - rho^2) (1 + eta^2 rho^2) / (1 + g rho)

Sources: DDIM (arXiv:2010.02502), Eq. 7; Analytic-DPM (arXiv:2201.06503), Eq. 4 and Theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.schedule.levels import NoiseLevels, per_sample


@dataclass(frozen=True)
class ReverseKernel:
    """Coefficients of ``p(x_s | x_t)``, all 0-dimensional, ``[B]``, or ``[K]`` for the steps of a chain."""

    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    beta: Tensor  # beta_{t|s}
    lambda_sq: Tensor
    eps_scale: Tensor  # sqrt(sigma_s^2 - lambda^2)
    c: Tensor

    @classmethod
    def from_levels(cls, s: NoiseLevels, t: NoiseLevels, eta: float = 1.0) -> ReverseKernel:
        """The kernel from level ``t`` to level ``s``, ``0 <= s < t <= 1``, for one step or for all steps of a chain."""
        log_rho_sq = t.log_snr - s.log_snr
        rho_sq, rest = torch.exp(log_rho_sq), -torch.expm1(log_rho_sq)  # rho^2 and 1 - rho^2
        g = (1 - eta**2 + eta**2 * rho_sq).sqrt()
        c = s.alpha * rest * (1 + eta**2 * rho_sq) / (1 + g * rho_sq.sqrt())
        return cls(t.alpha, t.sigma, s.alpha, t.sigma**2 * rest, eta**2 * s.sigma**2 * rest, s.sigma * g, c)

    def mean(self, x0: Tensor, eps: Tensor) -> Tensor:
        """``E[x_s | x_t]`` from ``m`` and ``e``, each ``[B, *event]``."""
        return per_sample(self.alpha_s, x0) * x0 + per_sample(self.eps_scale, eps) * eps

    def covariance(self, x0_covariance: Covariance) -> Covariance:
        """``Cov[x_s | x_t]`` from ``C = Cov[x_0 | x_t]``."""
        return x0_covariance.affine(self.c**2, self.lambda_sq)

    def __getitem__(self, step: int) -> ReverseKernel:
        return ReverseKernel(*(getattr(self, field.name)[step] for field in fields(self)))

    def to(self, device: torch.device) -> ReverseKernel:
        """Move the coefficients to a device."""
        return ReverseKernel(*(getattr(self, field.name).to(device) for field in fields(self)))
