"""The covariance of the data and nothing else: the baseline that a model of C has to beat.

    C = (S^{-1} + (alpha_t^2 / sigma_t^2) I)^{-1},   S = Cov[x_0]

what x_t would leave of Gaussian data with that covariance; the same for all x_t, with correlations, and no network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from optcov.covariance import PCA, BasisCovariance, Covariance
from optcov.covariance.base import check_dense
from optcov.denoiser import Denoiser, Prediction
from optcov.variance.base import Calibrated
from optcov.variance.likely import per_event, posterior_variance


class DataCovariance(Calibrated):
    """``var=data_cov``: a full matrix for each time, in the principal axes of the data.

    Args:
        denoiser: the mean network, for its shapes.
        num_images: of the data; 2 or more, many times d for a good estimate.
    Raises:
        ValueError: if there are fewer than 2 images, or more dimensions than a dense matrix may have.

    Buffers (float64):
        axes: of the data, in columns, ``[d, d]``.
        variance: along each, ``[*event]``.
    """

    def __init__(self, denoiser: Denoiser, num_images: int = 4096) -> None:
        super().__init__(denoiser)
        if num_images < 2:
            raise ValueError(f"var.num_images must be at least 2 (got {num_images}): a covariance needs two")
        self.num_images = num_images
        dim = torch.Size(denoiser.data_shape).numel()
        check_dense(dim)
        self.axes: Tensor
        self.variance: Tensor
        self.register_buffer("axes", torch.full((dim, dim), torch.nan, dtype=torch.float64))
        self.register_buffer("variance", torch.full(denoiser.data_shape, torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        clean = torch.cat(list(batches))
        basis, variance = PCA.of(clean)
        self.to(clean.device)
        self.axes.copy_(basis.axes)
        self.variance.copy_(variance)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t = prediction.x_t
        variance = (
            posterior_variance(self.variance, per_event(prediction.level, x_t.ndim)).to(x_t.dtype).expand(x_t.shape)
        )
        axes = self.axes.to(x_t.dtype)  # here, because solutions take many products
        return BasisCovariance(PCA(axes, x_t.shape[1:]), variance)
