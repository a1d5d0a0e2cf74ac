"""The two fixed variances of DDPM (arXiv:2006.11239, Sec. 3.2), as models of ``Cov[x_0 | x_t]``."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import VarianceStrategy


class BetaTilde(VarianceStrategy):
    """``C = 0``: x_0 taken as known.  A DDPM step has variance beta_tilde, a DDIM step with eta = 0 none."""

    cut_last = False

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        return IsotropicCovariance(x_t.new_zeros(len(x_t)), x_t.shape[1:])


class Beta(VarianceStrategy):
    """``C = sigma_t^2 I``: exact for unit-Gaussian data.  A DDPM step has variance beta_{t|s} at any stride."""

    cut_last = False

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        variance = denoiser.schedule.sigma(t) ** 2
        return IsotropicCovariance(variance.to(x_t.dtype).expand(len(x_t)), x_t.shape[1:])
