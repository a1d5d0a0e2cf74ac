r"""One scalar a time that brings a covariance to the size of the errors on held-out data: ``kappa(t) C``.

    kappa(t) = E||x_0 - m||^2 / E[tr C]

A head is fitted on training data, where a learned mean errs less than on new data, and a Jacobian knows nothing of the
mean's own error: without a correction, both are overconfident.  Correlations stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import Calibrated, CovarianceModel, VarianceStrategy


class Recalibrated(Calibrated):
    """A fitted strategy times kappa(t), which one pass over held-out data measures.

    ``optcov.fit(Recalibrated(denoiser, strategy), denoiser, held_out)`` measures it.

    Args:
        denoiser: the mean network.
        strategy: fitted; a model of C.
        num_times: times at which kappa is measured, evenly from the first to the last; log kappa is linear in between.
        num_images: how many images the pass wants, at most.
    Raises:
        ValueError: if the strategy has no C, or there are fewer than two times.
    """

    log_kappa: Tensor

    def __init__(
        self, denoiser: Denoiser, strategy: VarianceStrategy, num_times: int = 20, num_images: int = 256
    ) -> None:
        super().__init__(denoiser)
        if not isinstance(strategy, CovarianceModel):
            raise ValueError(
                f"strategy must model Cov[x_0|x_t] (got {type(strategy).__name__}, which does not): choose another, "
                "such as npr_dpm"
            )
        if num_times < 2:
            raise ValueError(f"num_times must be at least 2 (got {num_times}): give such as 20")
        self.strategy, self.num_times, self.num_images = strategy, num_times, num_images
        self.first = 1 / denoiser.schedule.num_steps
        self.register_buffer("log_kappa", torch.full((num_times,), float("nan"), dtype=torch.float64))

    @torch.no_grad()
    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        error, trace = torch.zeros_like(self.log_kappa), torch.zeros_like(self.log_kappa)
        generator = torch.Generator().manual_seed(derive_seed(seed, Stream.CALIBRATION))
        start = 0
        for x_0 in batches:
            own = None if labels is None else labels[start : start + len(x_0)]
            start += len(x_0)
            for i, t in enumerate(torch.linspace(self.first, 1, self.num_times, dtype=torch.float64)):
                level = denoiser.levels(t).to(x_0.device)
                eps = torch.randn(x_0.shape, dtype=x_0.dtype, generator=generator).to(x_0.device)
                prediction = denoiser(denoiser.diffuse(x_0, eps, level), level, own)
                error[i] += ((x_0 - prediction.x0) ** 2).double().sum()
                trace[i] += self._model.bounded_covariance(denoiser, prediction).trace().double().sum()
        self.log_kappa.copy_((error / trace).log())

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        place = (prediction.level.t - self.first) / (1 - self.first) * (self.num_times - 1)
        place = place.clamp(0, self.num_times - 1)
        low = place.floor().long().clamp(max=self.num_times - 2)
        kappa = self.log_kappa[low].lerp(self.log_kappa[low + 1], place - low).exp()
        return self._model.bounded_covariance(denoiser, prediction).affine(kappa, torch.zeros_like(kappa))

    @property
    def _model(self) -> CovarianceModel:
        assert isinstance(self.strategy, CovarianceModel)
        return self.strategy
