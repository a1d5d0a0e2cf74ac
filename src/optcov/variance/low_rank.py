r"""A diagonal and r directions, both of x_t: ``C = C_0(t) (diag(exp(h_0 + b)) + sum_i u_i u_i^T)``.

    u_i = h_i(x_t, t) + w(t) p_i,     w = sigma_t^2 / (sigma_t^2 + alpha_t^2 v)

with h_0 .. h_r from one head, b a learned curve of time for each pixel, and p_i a learned image each, which breaks the
symmetry of a head that starts at 0 and knows where a pixel is; w is 0 where x_t tells x_0, and C is white.  See
`optcov.variance.likely` for the scale C_0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optcov.covariance import Covariance, LowRankCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, HeadFactory, TrainedHead, several
from optcov.variance.jacobian import check_signal, product
from optcov.variance.likely import TimeCurves, data_variance, nll, positive, reference, residual, scaled


class LowRank(TrainedHead, CovarianceModel):
    """``var=low_rank``: fitted by the Gaussian NLL of x_0, by products with the Jacobian of the mean, or by both.

    Args:
        denoiser, head: as in `TrainedHead`; the head has 1 + r numbers a pixel.
        rank: r, at most d; a draw takes r more numbers than pixels.
        nll_weight: of the NLL in the loss.
        jacobian_weight: of ``||(alpha_t^2 / sigma_t^2) (C v - C_J v)||^2`` for white v in the loss, which costs a
            product a step.  In this unit the eigenvalues of an exact C are in [0, 1] at all times; in that of C_0, the
            errors of a learned Jacobian grow as 1 / alpha_t.
    Raises:
        ValueError: if the rank is out of range, or both weights are 0 or one is negative.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        head: HeadFactory,
        rank: int = 16,
        nll_weight: float = 1.0,
        jacobian_weight: float = 0.0,
    ) -> None:
        dim = torch.Size(denoiser.data_shape).numel()
        if not 1 <= rank <= dim:
            raise ValueError(
                f"var.rank must be at least 1 and at most the dimension {dim} (got {rank}): give such as 8"
            )
        if min(nll_weight, jacobian_weight) < 0 or nll_weight + jacobian_weight == 0:
            raise ValueError(
                f"var.nll_weight and var.jacobian_weight must not be negative, and not both 0 (got {nll_weight} and "
                f"{jacobian_weight}): give 1 and 0 for likelihood alone"
            )
        super().__init__(denoiser, several(head, 1 + rank))
        if jacobian_weight:
            check_signal(denoiser)
        self.rank, self.nll_weight, self.jacobian_weight = rank, nll_weight, jacobian_weight
        self.curves = TimeCurves(denoiser.data_shape)
        self.patterns = nn.Parameter(0.1 * torch.randn(rank, *denoiser.data_shape))

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        ratio = self._ratio(denoiser, prediction)
        loss = torch.zeros(len(target), dtype=target.dtype, device=target.device)
        if self.nll_weight:
            loss = loss + self.nll_weight * nll(ratio, residual(denoiser, prediction, target))
        if self.jacobian_weight:
            v = torch.randn_like(target)
            image = product(denoiser, prediction, v).detach()
            level = prediction.level
            unit = level.alpha**2 / level.sigma**2
            ours = per_sample(unit * reference(denoiser, level), v) * ratio.matvec(v)
            loss = loss + self.jacobian_weight * ((ours - per_sample(unit, v) * image) ** 2).flatten(1).sum(1)
        return loss

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return scaled(self._ratio(denoiser, prediction), denoiser, prediction)

    def _ratio(self, denoiser: Denoiser, prediction: Prediction) -> LowRankCovariance:
        outputs, level = self.head_outputs(denoiser, prediction), prediction.level
        white = per_sample(reference(denoiser, level) / data_variance(denoiser), outputs)
        factor = outputs[:, 1:] + white * self.patterns.to(outputs.dtype)
        return LowRankCovariance(positive(outputs[:, 0] + self.curves(level)), factor)
