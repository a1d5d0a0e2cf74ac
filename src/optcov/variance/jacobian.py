r"""The covariance that a mean network has in its Jacobian: ``C_J = (sigma_t^2 / alpha_t) dm/dx_t``.

For the exact mean that is ``Cov[x_0|x_t]`` (second-order Tweedie formula; Meng et al. 2021, arXiv:2111.04726).  For a
learned one it is the covariance of the learned field, without what its own error adds: NPR's ``E[(x_0 - m)^2]`` is the
whole error, and ``C_J + diag(max(0, NPR - diag C_J))`` restores it pixel by pixel.

Products work while a sampler has gradients switched off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, SumCovariance
from optcov.covariance.base import unit_vectors
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import Closed, CovarianceModel, HeadFactory
from optcov.variance.npr_dpm import NPR
from optcov.wording import first_line

LARGEST = 1024  # dimensions; above that, d products a step are out of proportion


def check_signal(denoiser: Denoiser) -> None:
    """Refuse a path that ends without signal, where ``1 / alpha_t`` is not finite.

    Raises:
        ValueError: in one sentence.
    """
    schedule = denoiser.schedule
    if not bool(schedule.alpha(schedule.grid()[-1]) > 0):
        raise ValueError(
            f"schedule must leave some signal at t = 1 for a Jacobian's covariance (got {type(schedule).__name__}, "
            "which leaves none): choose another var, such as npr_dpm or low_rank"
        )


def product(denoiser: Denoiser, prediction: Prediction, v: Tensor) -> Tensor:
    """``C_J v``, ``[B, *event]``, in forward mode; NFE 1, NE 2.

    Raises:
        ValueError: if the network cannot be differentiated.
    """
    try:
        image = denoiser.jvp(prediction, v)
    except RuntimeError as error:
        reason = first_line(error)
        raise ValueError(
            f"network must be differentiable in forward mode for a Jacobian's covariance (got {reason!r}): set "
            "var=nll, low_rank or npr_dpm, which need no gradient of it, or var.difference=0.01 where var has that"
        ) from error
    return per_sample(prediction.level.sigma**2 / prediction.level.alpha, v) * image


def full_jacobian(denoiser: Denoiser, prediction: Prediction) -> FullCovariance:
    """The symmetric part of ``C_J``, by d products."""
    x_t = prediction.x_t
    columns = [product(denoiser, prediction, unit).flatten(1) for unit in unit_vectors(x_t)]
    matrix = torch.stack(columns, -1)
    return FullCovariance((matrix + matrix.mT) / 2, x_t.shape[1:])


def _check_size(denoiser: Denoiser) -> None:
    check_signal(denoiser)
    dim = torch.Size(denoiser.data_shape).numel()
    if dim > LARGEST:
        raise ValueError(
            f"data must have at most {LARGEST} dimensions for var=jacobian (got {dim}), which takes a product for "
            "each: set var=lgs, which takes a few"
        )


class Jacobian(Closed):
    """``var=jacobian``: the exact C of the learned field, a full matrix, by d Jacobian-vector products a step.

    An indefinite one, which no exact mean has, is projected on the positive semi-definite when it is bounded:
    `FullCovariance.indefiniteness` says how far.

    Args:
        denoiser: the mean network, of at most `LARGEST` dimensions.
    Raises:
        ValueError: if there are more, or the path ends without signal.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        _check_size(denoiser)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return full_jacobian(denoiser, prediction)


class CorrectedJacobian(NPR, CovarianceModel):
    """``var=jacobian_corrected``: ``C_J + diag(max(0, NPR - diag C_J))``, for a mean that is not exact.

    Args:
        denoiser: as in `Jacobian`.
        head: as in `NPR`, which it is trained as.
    Raises:
        ValueError: as `Jacobian`.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, head)
        _check_size(denoiser)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        jacobian = full_jacobian(denoiser, prediction).bounded(None)
        missing = (super().covariance(denoiser, prediction).diagonal() - jacobian.diagonal()).clamp(min=0)
        return FullCovariance(jacobian.matrix + missing.flatten(1).diag_embed(), missing.shape[1:])


def corrected(jacobian: Covariance, missing: Tensor) -> Covariance:
    """``C_J + diag(max(0, missing))``, where ``missing = NPR - diag C_J``, ``[B, *event]``."""
    return SumCovariance([jacobian, DiagonalCovariance(missing.clamp(min=0))])
