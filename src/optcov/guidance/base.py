r"""Guidance: a denoiser and a variance strategy for samples of wanted classes, which samplers take as any other.

Every guided noise prediction here is ``e = -sigma_t grad log q_w(x_t)`` of some density ``q_w`` of x_t.  By the
second-order Tweedie formula the covariance that goes with it is, with ``r = sigma_t^2 / alpha_t^2``,

    C = r (I - sigma_t de/dx_t)

and that is affine in e: as means are mixed, so are covariances.  It is ``Cov[x_0 | x_t]`` where the ``q_w`` of all t
are the diffusion of one distribution of x_0.  Products and powers of diffused densities are that for Gaussians of equal
covariance, where all of this is exact, and not in general: no distribution need lie behind a guided chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Given, Prediction
from optcov.kernel import ReverseKernel
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True, kw_only=True)
class GuidedPrediction(Prediction):
    """A guided mean, and the network's own answers, from which a strategy models the covariance.

    Args:
        start: whose covariance it is, ``C_0``.
        end: if there is one, the covariance is ``C_0 + weight (C_1 - C_0)``.
    """

    start: Prediction
    end: Prediction | None = None
    weight: float = 0.0


class Guidance(nn.Module):
    """``guidance=none``: a denoiser that knows classes is given the labels, and nothing else is done.

    Args:
        denoiser: the mean network, for what it knows; not kept.
        num_classes: K of the labels; None where there are none.
    Attributes:
        classifier: what is to be trained, ``(x_t, t) -> logits``; None for guidance that needs none.
        network_calls: of the mean network, for one prediction.
        classifier_calls: forward and backward, for one prediction.
        uses_null_label: whether the denoiser must have learned the null label.
        steers: whether predictions are others than the network's own.
    """

    classifier: nn.Module | None
    network_calls: int = 1
    classifier_calls: int = 0
    uses_null_label: bool = False
    steers: bool = False

    def __init__(self, denoiser: Denoiser, num_classes: int | None = None) -> None:
        super().__init__()
        self.classifier = None

    def predict(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor) -> Prediction:
        """The prediction for wanted classes.

        Args:
            denoiser: in eval mode.
            x_t: ``[B, *event]``.
            t: float64 in (0, 1], 0-dimensional or ``[B]``.
            labels: int64 ``[B]`` in 0..K-1.
        """
        return denoiser(x_t, t, labels)  # type: ignore[no-any-return]

    def bind(
        self, denoiser: Denoiser, strategy: VarianceStrategy, labels: Tensor | None
    ) -> tuple[Denoiser, VarianceStrategy]:
        """What a sampler is to be given for B samples of these classes; without labels, what it is without guidance."""
        return (denoiser, strategy) if labels is None else (Guided(denoiser, self, labels), GuidedVariance(strategy))


def finite(weight: float) -> float:
    """The weight of a guidance, if it is a number.

    Raises:
        ValueError: if it is not finite.
    """
    if not float("-inf") < weight < float("inf"):
        raise ValueError(f"guidance.weight = {weight} is no weight: give a number, such as 1 or 3")
    return float(weight)


class Guided(Given):
    """A denoiser of B samples under guidance.

    Args:
        denoiser, guidance: shared, not copied.
        labels: int64 ``[B]`` in 0..K-1, on their device.
    """

    def __init__(self, denoiser: Denoiser, guidance: Guidance, labels: Tensor) -> None:
        super().__init__(denoiser, labels)
        self.guidance = guidance

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        return self.guidance.predict(self.denoiser, x_t, t, self.labels)


class GuidedVariance(VarianceStrategy):
    """The covariance of guided predictions, by any strategy; those that mix no two answers keep the strategy's own.

    Mixed is the covariance of the step, ``lambda^2 I + c^2 C``, which is affine in C and which every strategy has.  A
    strategy bounds each C to [0, 1] before: a weight above 1 would enlarge what an estimate has beyond that.  The
    mixture is bounded to the same.

    Args:
        strategy: fitted; shared, not copied.
    """

    def __init__(self, strategy: VarianceStrategy) -> None:
        nn.Module.__init__(self)
        self.strategy = strategy
        self.cut_last = strategy.cut_last

    @property
    def models_step(self) -> bool:
        return self.strategy.models_step

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        return _mixed(
            lambda given, own: self.strategy.covariance(given, own, x_t, t).clamp(0.0, 1.0), denoiser, prediction
        )

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor
    ) -> Covariance:
        covariance = _mixed(
            lambda given, own: self.strategy.transition(kernel, given, own, x_t, t), denoiser, prediction
        )
        if not isinstance(prediction, GuidedPrediction) or prediction.end is None:
            return covariance
        return covariance.clamp(kernel.lambda_sq, kernel.lambda_sq + kernel.c**2)


def _mixed(
    covariance: Callable[[Denoiser, Prediction], Covariance], denoiser: Denoiser, prediction: Prediction
) -> Covariance:
    """``C_0 + weight (C_1 - C_0)`` over the network's own answers, each with the denoiser that gave it."""
    raw = denoiser.denoiser if isinstance(denoiser, Given) else denoiser

    def of(own: Prediction) -> Covariance:
        return covariance(raw if own.labels is None else raw.given(own.labels), own)

    if not isinstance(prediction, GuidedPrediction):
        return of(prediction)
    start = of(prediction.start)
    return start if prediction.end is None else start.lerp(of(prediction.end), prediction.weight)
