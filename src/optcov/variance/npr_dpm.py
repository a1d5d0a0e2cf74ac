"""NPR-DPM: a head learns the squared residual of the prediction.  Source: arXiv:2206.07309, Sec. 4.2 (Theorem 4)."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, TrainedHead


class NPR(TrainedHead, CovarianceModel):
    """``var=npr_dpm``: ``C = r g(x_t, t)``, where g regresses ``(f - f_net)^2``; also valid for an imperfect mean.

    For a network that predicts eps, ``r = sigma_t^2 / alpha_t^2`` and f is the noise, as published.

    Args:
        denoiser, head: as in `TrainedHead`; the head is g.
    """

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        g = self.head_output(denoiser, prediction)
        return (((target - prediction.output.detach()) ** 2 - g) ** 2).flatten(1).sum(1)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        g = self.head_output(denoiser, prediction)
        return DiagonalCovariance(per_sample(denoiser.parameterization.c_out_sq(prediction.level), g) * g)
