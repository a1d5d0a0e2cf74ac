r"""The reverse kernel of one step from ``t`` to ``s``, for every covariance.

With ``m = E[x_0|x_t]``, ``e = E[eps|x_t]`` and ``C = Cov[x_0|x_t]`` the moment-matched Gaussian is

    lambda^2 = eta^2 beta_{t|s} sigma_s^2 / sigma_t^2                eta = 1: DDPM, eta = 0: DDIM
    mean     = alpha_s m + sqrt(sigma_s^2 - lambda^2) e
    Sigma    = lambda^2 I + c^2 C,   c = alpha_s - sqrt(sigma_s^2 - lambda^2) alpha_t / sigma_t

Sources: DDIM (arXiv:2010.02502), Eq. 7; Analytic-DPM (arXiv:2201.06503), Eq. 4 and Theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.covariance import Covariance
from optcov.schedule.base import NoiseSchedule


@dataclass(frozen=True)
class ReverseKernel:
    """Coefficients of ``p(x_s | x_t)``, of one shape: 0-dimensional, ``[B]``, or ``[K]`` for the steps of a chain."""

    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    beta: Tensor  # beta_{t|s}
    lambda_sq: Tensor
    eps_scale: Tensor  # sqrt(sigma_s^2 - lambda^2)
    c: Tensor

    @classmethod
    def between(cls, schedule: NoiseSchedule, s: Tensor, t: Tensor, eta: float = 1.0) -> ReverseKernel:
        """The kernel from ``t`` to ``s`` (float64, ``0 <= s < t <= 1``); the same for steps of a chain at once."""
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
        beta = schedule.variance_between(s, t)
        lambda_sq = eta**2 * beta * sigma_s**2 / sigma_t**2
        eps_scale = (sigma_s**2 - lambda_sq).clamp(min=0).sqrt()
        return cls(alpha_t, sigma_t, alpha_s, beta, lambda_sq, eps_scale, alpha_s - eps_scale * alpha_t / sigma_t)

    def mean(self, x0: Tensor, eps: Tensor) -> Tensor:
        """``E[x_s | x_t]`` from ``m`` and ``e``, each ``[B, *event]``."""
        return per_sample(self.alpha_s, x0) * x0 + per_sample(self.eps_scale, eps) * eps

    def covariance(self, x0_covariance: Covariance) -> Covariance:
        """``Cov[x_s | x_t]`` from ``C = Cov[x_0 | x_t]``."""
        return x0_covariance.affine(self.c**2, self.lambda_sq)

    def __getitem__(self, step: int) -> ReverseKernel:
        return ReverseKernel(*(getattr(self, field.name)[step] for field in fields(self)))

    def to(self, device: torch.device) -> ReverseKernel:
        return ReverseKernel(*(getattr(self, field.name).to(device) for field in fields(self)))
