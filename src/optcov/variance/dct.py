"""The unconditional spectrum: one variance for each time and cosine, measured as Analytic-DPM measures pixels'."""

from __future__ import annotations

from torch import Tensor

from optcov.covariance import DCT, BasisCovariance, Covariance
from optcov.denoiser import Denoiser
from optcov.variance.analytic import Analytic


class Spectrum(Analytic):
    """``var=dct``: ``C = H^T diag(r E[(H (f - f_net))^2]) H``, with H the cosines of `optcov.covariance.DCT`.

    Args:
        denoiser, imperfect_mean, num_images, num_times, batch_size: as in `Analytic`, with a variance for each cosine.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        imperfect_mean: bool = True,
        num_images: int = 128,
        num_times: int | None = None,
        batch_size: int = 512,
    ) -> None:
        super().__init__(denoiser, True, imperfect_mean, num_images, num_times, batch_size)
        self.basis = DCT(denoiser.data_shape)

    def coordinates(self, x: Tensor) -> Tensor:
        return self.basis.analyse(x)

    def structured(self, variance: Tensor) -> Covariance:
        return BasisCovariance(self.basis, variance)
