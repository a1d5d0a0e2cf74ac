"""SN-DPM: a head learns the squared noise.  Source: arXiv:2206.07309, Sec. 4.1 (Theorem 3)."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction, noise_variance
from optcov.variance.base import HeadFactory, VarianceStrategy


class SN(VarianceStrategy):
    """``var=sn_dpm``: ``C = r (h(x_t, t) - e^2)``, where h regresses ``eps^2``; optimal for an exact mean.

    Args:
        denoiser: the mean network, for its shapes.
        head: makes h from ``(feature_channels, data_shape)``.
    """

    fitting = "train"

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser)
        self.head = head(denoiser.feature_channels, denoiser.data_shape)

    def loss(self, denoiser: Denoiser, prediction: Prediction, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.head(prediction.features, t).to(eps.dtype)
        return ((eps**2 - h) ** 2).flatten(1).sum(1)  # type: ignore[no-any-return]

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        h = self.head(prediction.features, t).to(x_t.dtype)
        variance = (h - prediction.eps**2).clamp(min=0)
        return DiagonalCovariance(variance).affine(noise_variance(denoiser.schedule, t), h.new_zeros(()))
