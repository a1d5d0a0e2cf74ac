r"""A diagonal and a spectrum with correlated channels, both of x_t: after K-DCT (TMLR 2026, arXiv:2608.21972).

    C = C_0(t) (diag(exp(h_0 + b(t))) + C_channel (x) H^T diag(lambda) H)
    lambda_k = p_k exp(sum_j a_j(x_t, t) b_jk + c_k(t))

with H the cosines of an image, p the posterior variances of stationary Gaussian data, ``C_channel = V diag(w) V^T``
learned and the same for all x_t, b and c learned curves of time, and a_j the averages over pixels of a head.  What this
shares with the paper is the form, a learned diagonal and colour (x) DCT at the cost of a head; how it is fitted is our
own: by the Gaussian NLL of the pixels and that of the coefficients, each taken one by one, for these need no
determinant of a sum.  Both are least where their variances are the true ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from optcov.covariance import DCT, BasisCovariance, Covariance, DiagonalCovariance, SumCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead, several
from optcov.variance.dct_head import check_modes, spectrum_change, spectrum_ratio
from optcov.variance.likely import TimeCurves, data_variance, nll, positive, residual, scaled


class KroneckerDCT(TrainedHead, CovarianceModel):
    """``var=kdct``: ``diag + colour (x) DCT``.

    Args:
        denoiser, head: as in `TrainedHead`; the head has ``1 + modes`` numbers a pixel.
        modes: of the spectrum, at least 1.
    Raises:
        ValueError: if ``modes`` is below 1.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory, modes: int = 8) -> None:
        check_modes(modes)
        super().__init__(denoiser, several(head, 1 + modes))
        channels, *space = denoiser.data_shape
        self.log_spectrum = nn.Parameter(torch.full((1, *space), math.log(data_variance(denoiser))))
        self.pixel_curves, self.curves = TimeCurves(denoiser.data_shape), TimeCurves((1, *space))
        self.spectra = nn.Parameter(torch.randn(modes, 1, *space) / modes**0.5)
        self.log_channels = nn.Parameter(torch.zeros(channels))
        self.rotation = nn.Parameter(torch.zeros(channels, channels))  # V is the exponential of its skew part

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        diagonal, coloured = self._terms(denoiser, prediction)
        u, basis = residual(denoiser, prediction, target), coloured.basis
        pixels = DiagonalCovariance(diagonal + coloured.diagonal())
        coefficients = BasisCovariance(basis, coloured.variance + basis.gather(diagonal))
        return nll(pixels, u) + nll(coefficients, u)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        diagonal, coloured = self._terms(denoiser, prediction)
        return scaled(SumCovariance([coloured, DiagonalCovariance(diagonal)]), denoiser, prediction)

    def _terms(self, denoiser: Denoiser, prediction: Prediction) -> tuple[Tensor, BasisCovariance]:
        outputs = self.head_outputs(denoiser, prediction)
        shared = outputs[:, 1:].mean(2, keepdim=True)  # by the channels
        change = spectrum_change(shared, self.spectra, self.curves(prediction.level))
        spectrum = spectrum_ratio(self.log_spectrum, denoiser, prediction)[:, :1] * change
        vectors = torch.linalg.matrix_exp(self.rotation - self.rotation.T).to(outputs.dtype)
        own = positive(self.log_channels).to(outputs.dtype)
        variance = own.reshape(-1, *[1] * (spectrum.ndim - 2)) * spectrum
        # the diagonal starts as a part of the whole
        return positive(outputs[:, 0] - 1 + self.pixel_curves(prediction.level)), BasisCovariance(
            DCT(variance.shape[1:], vectors), variance
        )
