r"""Classifier guidance (arXiv:2105.05233), with a classifier p(y|x_t) trained on noisy data.

    e_w = e - w sigma_t grad log p(y|x_t)                            (Algorithm 2)
    C_w = C + w (sigma_t^4 / alpha_t^2) Hess log p(y|x_t)            (follows by Tweedie's formula)

The implementation omits the Hessian, as published, and keeps C: even its diagonal would take a backward pass for each
of the d dimensions.  For an exact classifier and an unconditional network, both lines agree with classifier-free
guidance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance, GuidedPrediction, finite
from optcov.schedule.levels import per_sample
from optcov.variance.base import VarianceStrategy

ClassifierFactory = Callable[[tuple[int, ...], int], nn.Module]
"""``(data_shape, num_classes) -> classifier``, a module ``(x_t, network_time) -> [B, num_classes]`` of logits."""


class ClassifierGuidance(Guidance):
    """Moves predictions along the gradient of a classifier.

    Args:
        denoiser: unconditional or class-conditional; the latter also gets the labels.
        num_classes: K, the number of classes of the data.
        classifier: makes the classifier, which is then trained on noisy data.
        weight: w, any finite number; the paper's scale.
    Raises:
        ValueError: if there are no classes, or w is not finite.
    """

    classifier: nn.Module

    def __init__(
        self, denoiser: Denoiser, num_classes: int | None, classifier: ClassifierFactory, weight: float = 1.0
    ) -> None:
        super().__init__(denoiser, num_classes)
        if num_classes is None:
            raise ValueError(
                "guidance=classifier must have data with classes (got none): set data=digits, or guidance=none"
            )
        self.weight = finite(weight)
        self.steers = self.weight != 0
        self.classifier = classifier(denoiser.data_shape, num_classes)

    def steer(
        self, denoiser: Denoiser, strategy: VarianceStrategy, own: Prediction, condition: Tensor | None
    ) -> Prediction:
        if not self.steers or condition is None:
            return own
        x_t, level = own.x_t, own.level
        alpha, sigma = per_sample(level.alpha, x_t), per_sample(level.sigma, x_t)
        denoiser.cost.add(len(x_t), classifier_calls=1)
        shift = self.weight * sigma * self.gradient(x_t, denoiser.network_time(level), condition)
        has_signal = alpha > 0  # without signal, x_t says nothing about the class: the exact gradient is 0
        eps = own.eps - torch.where(has_signal, shift, 0.0)
        x0 = own.x0 + torch.where(has_signal, sigma / alpha * shift, 0.0)
        output = denoiser.parameterization.target(x0, eps, level)
        return GuidedPrediction(x_t, level, x0, eps, output, own.features, own.condition, start=own)

    def gradient(self, x_t: Tensor, network_time: Tensor, labels: Tensor) -> Tensor:
        """``grad log p(y|x_t)``, shape of ``x_t``; works in any gradient mode of the caller."""
        with torch.inference_mode(False), torch.enable_grad():
            at, network_time, labels = x_t.detach().clone().requires_grad_(), network_time.clone(), labels.clone()
            log_p = self.classifier(at, network_time).log_softmax(1).gather(1, labels[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), at)
        return gradient
