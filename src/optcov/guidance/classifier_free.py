r"""Classifier-free guidance (arXiv:2207.12598), in mean and covariance, with one network that knows the null label.

    e_w = e_u + w (e_c - e_u)         w = 0: unconditional, w = 1: conditional; the paper's weight (Eq. 6) is w - 1
    C_w = C_u + w (C_c - C_u)         all three bounded by the largest variance of data in their range

``_c`` marks the requested class and ``_u`` the null label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance, GuidedPrediction, finite, x0_covariance
from optcov.kernel import ReverseKernel
from optcov.schedule.levels import NoiseLevels
from optcov.variance.base import VarianceStrategy


class ClassifierFreeGuidance(Guidance):
    """Moves predictions from the unconditional prediction towards that of a class, and beyond it for w > 1.

    A single call on twice the batch gives both predictions; if w is 0 or 1, only one of them is computed.

    Args:
        denoiser: a class-conditional denoiser; unless w is 1, it must have learned the null label.
        num_classes: K, the number of classes.
        weight: w, any finite number.
    Raises:
        ValueError: if the denoiser is not class-conditional, or w is not finite.
    """

    def __init__(self, denoiser: Denoiser, num_classes: int | None = None, weight: float = 1.0) -> None:
        super().__init__(denoiser, num_classes)
        if denoiser.num_classes is None:
            raise ValueError(
                "guidance=classifier_free must have a mean network that knows classes (got one that does not): set "
                "conditional=true, or guidance=classifier"
            )
        self.weight = finite(weight)
        self.uses_null_label = self.steers = self.weight != 1

    def predict(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        x_t: Tensor,
        level: NoiseLevels,
        condition: Tensor | None,
    ) -> Prediction:
        if condition is None or self.weight == 1:
            return denoiser(x_t, level, condition)  # type: ignore[no-any-return]
        null = torch.full_like(condition, denoiser.num_classes or 0)
        if self.weight == 0:
            return denoiser(x_t, level, null)  # type: ignore[no-any-return]
        twice = NoiseLevels.cat([level, level]) if level.t.ndim else level
        both: Prediction = denoiser(torch.cat([x_t, x_t]), twice, torch.cat([null, condition]))
        outputs, features = both.output.chunk(2), both.features.chunk(2)
        start, end = (
            denoiser.prediction(x_t, level, outputs[i], features[i], labels)
            for i, labels in enumerate((null, condition))
        )
        x0, eps, output = (
            torch.lerp(getattr(start, of), getattr(end, of), self.weight) for of in ("x0", "eps", "output")
        )
        return GuidedPrediction(
            x_t, level, x0, eps, output, end.features, condition, start=start, end=end, weight=self.weight
        )

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        if not isinstance(prediction, GuidedPrediction):
            return super().transition(kernel, denoiser, strategy, prediction)
        return kernel.covariance(self.covariance(kernel, denoiser, strategy, prediction))

    def covariance(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        if not isinstance(prediction, GuidedPrediction) or prediction.end is None:
            return super().covariance(kernel, denoiser, strategy, prediction)
        start, end = (x0_covariance(kernel, denoiser, strategy, own) for own in (prediction.start, prediction.end))
        return start.lerp(end, self.weight).bounded(denoiser.data_range.variance_bound)
