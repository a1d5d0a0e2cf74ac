r"""The covariance of the learned field without a matrix: a few Lanczos steps on ``v -> C_J v``.

Source: LGS (arXiv:2605.22723).  A step takes k products beside the prediction: Jacobian-vector products, or forward
differences ``C_J v ~ (sigma_t^2 / alpha_t) (m(x_t + h v) - m(x_t)) / h``, which use the prediction that is there and
cost one evaluation each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optcov.covariance import Covariance, MatrixFreeCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import Closed, CovarianceModel, HeadFactory, TrainedHead, several
from optcov.variance.jacobian import check_signal, corrected, product
from optcov.variance.ocm import corrected_loss


def difference_product(denoiser: Denoiser, prediction: Prediction, v: Tensor, difference: float) -> Tensor:
    """``C_J v``, ``[B, *event]``, by a forward difference; NFE 1, NE 1.

    Args:
        difference: root mean square of the step from x_t, in units of sigma_t.
    """
    level, x_t = prediction.level, prediction.x_t
    length = v.flatten(1).square().mean(1).sqrt()
    size = difference * level.sigma.to(v.dtype) / torch.where(length > 0, length, 1.0)
    moved: Prediction = denoiser(x_t + per_sample(size, v) * v, level, prediction.condition)
    return per_sample(level.sigma**2 / level.alpha / size, v) * (moved.x0 - prediction.x0)


def matrix_free(
    denoiser: Denoiser,
    prediction: Prediction,
    steps: int,
    difference: float | None,
    probes: int,
    variance: Tensor | None = None,
) -> MatrixFreeCovariance:
    """C_J by its products."""
    multiply: Callable[[Tensor], Tensor]
    if difference is None:
        multiply = lambda v: product(denoiser, prediction, v)  # noqa: E731
    else:
        multiply = lambda v: difference_product(denoiser, prediction, v, difference)  # noqa: E731
    return MatrixFreeCovariance(multiply, prediction.x_t, steps, variance, probes)


def check_steps(denoiser: Denoiser, steps: int, difference: float | None) -> None:
    """Refuse settings without meaning.

    Raises:
        ValueError: in one sentence.
    """
    check_signal(denoiser)
    dim = torch.Size(denoiser.data_shape).numel()
    if not 1 <= steps <= dim:
        raise ValueError(f"var.steps must be at least 1 and at most the dimension {dim} (got {steps}): give such as 3")
    if difference is not None and not 0 < difference <= 1:
        raise ValueError(
            f"var.difference must be above 0 and at most 1 (got {difference}): give 0.01, or null for exact products"
        )


class LGS(Closed):
    """``var=lgs``: C of the learned field, by k products a draw.

    The bound on its diagonal, which no exact mean passes, is left out, for a diagonal would take d products; negative
    eigenvalues become 0.

    Args:
        denoiser: the mean network.
        steps: k, at least 1 and at most d.
        difference: None for Jacobian-vector products; for forward differences the root mean square of their step, in
            units of sigma_t.
        probes: of the quadrature, in likelihoods.
    Raises:
        ValueError: if an argument is out of range, or the path ends without signal.
    """

    def __init__(self, denoiser: Denoiser, steps: int = 3, difference: float | None = None, probes: int = 16) -> None:
        super().__init__(denoiser)
        check_steps(denoiser, steps, difference)
        self.steps, self.difference, self.probes = steps, difference, probes

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return matrix_free(denoiser, prediction, self.steps, self.difference, self.probes)

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return self.covariance(denoiser, prediction).bounded(None)


class CorrectedLGS(TrainedHead, CovarianceModel):
    """``var=lgs_corrected``: ``C_J + diag(max(0, NPR - diag C_J))``, for a mean that is not exact.

    Its head knows the diagonal of C_J, as OCM's does, so that the bound costs nothing.

    Args:
        denoiser, steps, difference, probes: as in `LGS`.
        head: two numbers a pixel, those of OCM and of NPR.
    Raises:
        ValueError: as `LGS`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        head: HeadFactory,
        steps: int = 3,
        difference: float | None = None,
        probes: int = 16,
    ) -> None:
        super().__init__(denoiser, several(head, 2))
        check_steps(denoiser, steps, difference)
        self.steps, self.difference, self.probes = steps, difference, probes

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        return corrected_loss(denoiser, prediction, target, self.head_outputs(denoiser, prediction))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        outputs = self.head_outputs(denoiser, prediction)
        r = per_sample(denoiser.parameterization.c_out_sq(prediction.level), outputs)
        own, total = (r * outputs).unbind(1)
        jacobian = matrix_free(denoiser, prediction, self.steps, self.difference, self.probes, own.clamp(min=0))
        return corrected(jacobian, total - own.clamp(min=0))
