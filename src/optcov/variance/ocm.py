r"""Optimal covariance matching: a head regresses the diagonal of the Jacobian's covariance.

    ||h - v (C_J v) / r||^2,   v of random signs, E[v (C_J v)] = diag C_J      (Hutchinson),   r = c_out^2

so that ``C = r h``: as NPR, in the unit of the network's target, from the derivative of the mean instead of its error.
Source: arXiv:2406.10808, Sec. 3 (there the Hessian of log q(x_t), which is affine in C_J).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead, several
from optcov.variance.jacobian import check_signal, product


def hutchinson(denoiser: Denoiser, prediction: Prediction) -> Tensor:
    """``v (C_J v) / r`` for one v of random signs, ``[B, *event]``: what a head regresses."""
    v = torch.randint_like(prediction.x_t, 2) * 2 - 1
    sample = v * product(denoiser, prediction, v).detach()
    return sample / per_sample(denoiser.parameterization.c_out_sq(prediction.level), sample)


class OCM(TrainedHead, CovarianceModel):
    """``var=ocm``: the diagonal of the learned field's own covariance.

    Args:
        denoiser, head: as in `TrainedHead`; the head is h.
    Raises:
        ValueError: if the path ends without signal.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, head)
        check_signal(denoiser)

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        return ((hutchinson(denoiser, prediction) - self.head_output(denoiser, prediction)) ** 2).flatten(1).sum(1)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        h = self.head_output(denoiser, prediction)
        return DiagonalCovariance(per_sample(denoiser.parameterization.c_out_sq(prediction.level), h) * h)


class CorrectedOCM(TrainedHead, CovarianceModel):
    """``var=ocm_corrected``: ``diag C_J + max(0, NPR - diag C_J)``, for a mean that is not exact; two numbers a pixel.

    Args:
        denoiser, head: as in `OCM`.
    Raises:
        ValueError: as `OCM`.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, several(head, 2))
        check_signal(denoiser)

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        return corrected_loss(denoiser, prediction, target, self.head_outputs(denoiser, prediction))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        own, total = self.head_outputs(denoiser, prediction).unbind(1)
        r = per_sample(denoiser.parameterization.c_out_sq(prediction.level), own)
        return DiagonalCovariance(r * torch.maximum(own, total))


def corrected_loss(denoiser: Denoiser, prediction: Prediction, target: Tensor, outputs: Tensor) -> Tensor:
    """That of OCM for the first output ``[B, 2, *event]``, plus that of NPR for the second, ``[B]``."""
    own, total = outputs.unbind(1)
    errors = (hutchinson(denoiser, prediction) - own) ** 2 + ((target - prediction.output.detach()) ** 2 - total) ** 2
    return errors.flatten(1).sum(1)
