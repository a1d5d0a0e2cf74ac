r"""A spectrum that depends on x_t: the variance of each cosine, by the Gaussian NLL of x_0 given x_t.

    C = H^T diag(lambda) H,   lambda_k = s_k sigma^2 / (sigma^2 + alpha^2 s_k) exp(sum_j a_j(x_t, t) b_jk + c_k(t))

Each s_k is the variance of a cosine in the data, learned, so that without a head C is the posterior covariance of
stationary Gaussian data; c_k is a learned curve of time, each b_j a learned image of spectra, and the a_j are the
averages over pixels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from optcov.covariance import DCT, BasisCovariance, Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead, several
from optcov.variance.likely import (
    TimeCurves,
    data_variance,
    nll,
    per_event,
    positive,
    posterior_variance,
    reference,
    residual,
    scaled,
)


class SpectrumHead(TrainedHead, CovarianceModel):
    """``var=dct_head``: a conditional spectrum.

    Args:
        denoiser, head: as in `TrainedHead`; the head has ``modes`` numbers a pixel, which are averaged over pixels.
        modes: of the spectrum, at least 1.
    Raises:
        ValueError: if ``modes`` is below 1.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory, modes: int = 8) -> None:
        check_modes(modes)
        super().__init__(denoiser, several(head, modes))
        shape = denoiser.data_shape
        self.basis = DCT(shape)
        self.log_spectrum = nn.Parameter(torch.full(shape, math.log(data_variance(denoiser))))
        self.curves = TimeCurves(shape)
        self.spectra = nn.Parameter(torch.randn(modes, *shape) / modes**0.5)

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        return nll(self._ratio(denoiser, prediction), residual(denoiser, prediction, target))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return scaled(self._ratio(denoiser, prediction), denoiser, prediction)

    def _ratio(self, denoiser: Denoiser, prediction: Prediction) -> BasisCovariance:
        outputs = self.head_outputs(denoiser, prediction)
        change = spectrum_change(outputs, self.spectra, self.curves(prediction.level))
        return BasisCovariance(self.basis, spectrum_ratio(self.log_spectrum, denoiser, prediction) * change)


def check_modes(modes: int) -> None:
    """Refuse a number of spectra that is below 1.

    Raises:
        ValueError: naming the setting.
    """
    if modes < 1:
        raise ValueError(f"var.modes must be at least 1 (got {modes}): give the number of spectra to mix, such as 8")


def spectrum_change(outputs: Tensor, spectra: Tensor, curves: Tensor) -> Tensor:
    """``exp(sum_j a_j b_jk + c_k(t))``, where a_j is an output ``[B, modes, *event]`` of a head, averaged over pixels.

    Args:
        outputs: of the head; its axis of channels is 1 where they share a spectrum.
        spectra: the b_j, ``[modes, *event]``.
        curves: the c_k at the level, ``[B or 1, *event]``.
    """
    space = tuple(range(3, outputs.ndim))
    weights = outputs.mean(space, keepdim=True) if space else outputs
    return positive((weights * spectra.to(outputs.dtype)).sum(1) + curves)


def spectrum_ratio(log_spectrum: Tensor, denoiser: Denoiser, prediction: Prediction) -> Tensor:
    """The posterior variances of independent Gaussian coordinates over C_0, ``[B, *event]`` or ``[1, *event]``."""
    like = prediction.x_t
    level = per_event(prediction.level, like.ndim)
    ratio = posterior_variance(positive(log_spectrum).double(), level) / reference(denoiser, level)
    return ratio.to(like.dtype).expand(like.shape)
