r"""Classifier-free guidance (arXiv:2207.12598), in mean and covariance, from one network that knows the null label.

    e_w = e_u + w (e_c - e_u)         w = 0: unconditional, w = 1: conditional; the paper's weight (Eq. 6) is w - 1
    C_w = C_u + w (C_c - C_u)         each of the three clamped to [0, 1]

with ``_c`` for the wanted class and ``_u`` for the null label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance, GuidedPrediction, finite


class ClassifierFreeGuidance(Guidance):
    """Moves predictions from the unconditional ones towards, and beyond, those of a class.

    Both come from one call of twice the batch, or from a single one where w is 0 or 1.

    Args:
        denoiser: knows classes, and the null label unless w is 1.
        num_classes: K.
        weight: w, any finite number.
    Raises:
        ValueError: if the denoiser knows no classes, or w is not finite.
    """

    def __init__(self, denoiser: Denoiser, num_classes: int | None = None, weight: float = 1.0) -> None:
        super().__init__(denoiser, num_classes)
        if denoiser.num_classes is None:
            raise ValueError(
                "guidance = classifier_free wants a mean network that knows classes: set conditional=true, "
                "or guidance=classifier for one that does not"
            )
        self.weight = finite(weight)
        self.uses_null_label = self.steers = self.weight != 1
        self.network_calls = 1 if self.weight in (0, 1) else 2

    def predict(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor) -> Prediction:
        null = torch.full_like(labels, denoiser.num_classes or 0)
        if self.network_calls == 1:
            return denoiser(x_t, t, labels if self.weight == 1 else null)  # type: ignore[no-any-return]
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.ndim else t, torch.cat([null, labels]))
        (x0_u, x0_c), (e_u, e_c), (features_u, features_c) = (
            tensor.chunk(2) for tensor in (both.x0, both.eps, both.features)
        )
        return GuidedPrediction(
            torch.lerp(x0_u, x0_c, self.weight),
            torch.lerp(e_u, e_c, self.weight),
            features_c,
            labels,
            start=Prediction(x0_u, e_u, features_u, null),
            end=Prediction(x0_c, e_c, features_c, labels),
            weight=self.weight,
        )
