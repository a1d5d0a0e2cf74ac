r"""Gaussian mixture solvers: a head learns the third moment of the prediction's error beside the second.

    loss  ||(f - f_net)^2 - g||^2 + ||(f - f_net)^3 - k||^2,    C = r g,    E[(x_0 - m)^3] = c_out^3 k

so that steps are drawn from skewed mixtures, which have these moments: see `optcov.covariance.skewed`.

Source: GMS (arXiv:2311.00941), Sec. 3.2, which learns raw moments of the noise, as SN-DPM does, with one network each;
here they are central, as NPR-DPM's, so that a wrong mean does not enter them.
"""

from __future__ import annotations

from torch import Tensor

from optcov.covariance.skewed import SkewedCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead, several


class GMS(TrainedHead, CovarianceModel):
    """``var=gms``: NPR's variance, and draws with the third moment of each pixel.

    Args:
        denoiser, head: as in `TrainedHead`; the head has two numbers a pixel.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, several(head, 2))

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        second, third = self.head_outputs(denoiser, prediction).unbind(1)
        error = target - prediction.output.detach()
        return ((error**2 - second) ** 2 + (error**3 - third) ** 2).flatten(1).sum(1)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> SkewedCovariance:
        second, third = self.head_outputs(denoiser, prediction).unbind(1)
        scale = denoiser.parameterization.c_out(prediction.level)
        return SkewedCovariance(per_sample(scale**2, second) * second, per_sample(scale**3, third) * third)
