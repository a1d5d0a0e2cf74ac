"""NPR-DPM: a head learns the noise-prediction residual.  Source: arXiv:2206.07309, Sec. 4.2 (Theorem 4)."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction, noise_variance
from optcov.variance.base import HeadFactory, VarianceStrategy


class NPR(VarianceStrategy):
    """``var=npr_dpm``: ``C = r g(x_t, t)``, where g regresses ``(eps - e)^2``; valid for an imperfect mean, too.

    Args:
        denoiser: the mean network, for its shapes.
        head: makes g from ``(feature_channels, data_shape)``.
    """

    fitting = "train"

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser)
        self.head = head(denoiser.feature_channels, denoiser.data_shape)

    def loss(self, denoiser: Denoiser, prediction: Prediction, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        g = self.head(prediction.features, t).to(eps.dtype)
        return (((eps - prediction.eps.detach()) ** 2 - g) ** 2).flatten(1).sum(1)  # type: ignore[no-any-return]

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        g = self.head(prediction.features, t).to(x_t.dtype)
        return DiagonalCovariance(g.clamp(min=0)).affine(noise_variance(denoiser.schedule, t), g.new_zeros(()))
