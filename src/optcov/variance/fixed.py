"""The two fixed variances of DDPM (arXiv:2006.11239, Sec. 3.2), as models of ``Cov[x_0 | x_t]``."""

from __future__ import annotations

from optcov.covariance import Covariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import Closed


class BetaTilde(Closed):
    """``C = 0``, as if x_0 were known: a DDPM step has variance beta_tilde, and a DDIM step with eta = 0 has none."""

    cut_last = False

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t = prediction.x_t
        return IsotropicCovariance(x_t.new_zeros(len(x_t)), x_t.shape[1:])


class Beta(Closed):
    """``C = sigma_t^2 I``.

    On variance-preserving paths this is exact for unit-Gaussian data, and a DDPM step has variance beta_{t|s} at any
    stride.  On other paths neither holds: unit-Gaussian data have ``C = sigma_t^2 / (alpha_t^2 + sigma_t^2) I``.
    """

    cut_last = False

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t = prediction.x_t
        variance = prediction.level.sigma**2
        return IsotropicCovariance(variance.to(x_t.dtype).expand(len(x_t)), x_t.shape[1:])
