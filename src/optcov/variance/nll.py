"""A diagonal head fitted by likelihood: the log variance of each pixel, by the Gaussian NLL of x_0 given x_t."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead
from optcov.variance.likely import TimeCurves, nll, positive, residual, scaled


class NLL(TrainedHead, CovarianceModel):
    """``var=nll``: ``C = C_0(t) exp(h(x_t, t) + b(t))``, h a head and b a learned curve of time for each pixel.

    See `optcov.variance.likely` for the scale C_0.  The loss is least where C is the mean squared error of the mean, as
    for NPR, whose loss is a square; this one weighs relative errors, so that small variances count as much as large
    ones, and C is positive.

    Args:
        denoiser, head: as in `TrainedHead`; the head is h.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, head)
        self.curves = TimeCurves(denoiser.data_shape)

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        return nll(self._ratio(denoiser, prediction), residual(denoiser, prediction, target))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return scaled(self._ratio(denoiser, prediction), denoiser, prediction)

    def _ratio(self, denoiser: Denoiser, prediction: Prediction) -> DiagonalCovariance:
        logarithm = self.head_output(denoiser, prediction) + self.curves(prediction.level)
        return DiagonalCovariance(positive(logarithm))
