"""SN-DPM: a head learns the squared target.  Source: arXiv:2206.07309, Sec. 4.1 (Theorem 3)."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, TrainedHead


class SN(TrainedHead, CovarianceModel):
    """``var=sn_dpm``: ``C = r (h(x_t, t) - f_net^2)``, where h regresses ``f^2``; optimal for an exact mean.

    For a network that predicts eps, ``r = sigma_t^2 / alpha_t^2`` and f is the noise, as published.

    Args:
        denoiser, head: as in `TrainedHead`; the head is h.
    """

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        h = self.head_output(denoiser, prediction)
        return ((target**2 - h) ** 2).flatten(1).sum(1)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        variance = self.head_output(denoiser, prediction) - prediction.output**2
        return DiagonalCovariance(per_sample(denoiser.parameterization.c_out_sq(prediction.level), variance) * variance)
