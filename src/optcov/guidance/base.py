r"""Guidance: modifies predictions and their covariance; samplers need not know about it.

Every guided noise prediction here is ``e = -sigma_t grad log q_w(x_t)`` for some density ``q_w`` of x_t.  By the
second-order Tweedie formula, with ``r = sigma_t^2 / alpha_t^2``, the matching covariance is

    C = r (I - sigma_t de/dx_t)

This is affine in e, so covariances mix with the same weights as means.  It equals ``Cov[x_0 | x_t]`` if the ``q_w`` of
all t are the diffusion of a single distribution of x_0.  For products and powers of diffused densities this holds for
Gaussians of equal covariance, where everything here is exact, but not in general: a guided chain need not correspond to
any distribution of x_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.covariance.base import Noise
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.schedule.levels import NoiseLevels
from optcov.variance.base import CovarianceModel, VarianceStrategy


@dataclass(frozen=True, kw_only=True)
class GuidedPrediction(Prediction):
    """A guided mean, with the network's own predictions from which a strategy models the covariance.

    Args:
        start: the prediction whose covariance is ``C_0``.
        end: the prediction whose covariance is ``C_1``, so that the guided one is ``C_0 + weight (C_1 - C_0)``; None if
            the guided covariance is ``C_0``.
        weight: the guidance weight.
    """

    start: Prediction
    end: Prediction | None = None
    weight: float = 0.0


class Guidance(nn.Module):
    """``guidance=none``: passes labels to a class-conditional denoiser and changes nothing else.

    Args:
        denoiser: the mean network; read for its properties, not kept.
        num_classes: K, the number of classes; None if the data have none.
    Attributes:
        classifier: the classifier to train, ``(x_t, network_time) -> logits``; None if the guidance needs none.
        uses_null_label: whether the denoiser must have learned the null label.
        steers: whether predictions differ from the network's own.
        needs_labels: whether samples must have labels.
        names: what each of the measurements that samples are drawn for is called; none if they have no names.
    """

    classifier: nn.Module | None
    uses_null_label: bool = False
    steers: bool = False
    needs_labels: bool = True
    names: Sequence[str] = ()

    def __init__(self, denoiser: Denoiser | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        self.classifier = None

    def check(self, strategy: VarianceStrategy) -> None:
        """Refuse a strategy with which this guidance has no meaning.

        Raises:
            ValueError: in one sentence.
        """

    def check_count(self, num_samples: int) -> None:
        """Refuse a number of samples that this guidance is not for.

        Raises:
            ValueError: in one sentence.
        """

    def of(self, indices: Sequence[int]) -> Guidance:
        """The guidance of the samples with these indices; the same for all samples, unless a subclass differs."""
        return self

    def finish(self, x_0: Tensor, prediction: Prediction, noise: Noise) -> Tensor:
        """What a chain returns, ``[B, *event]``, from what its last step returned and the prediction of that step."""
        return x_0

    def predict(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        x_t: Tensor,
        level: NoiseLevels,
        condition: Tensor | None,
    ) -> Prediction:
        """Predict for the requested classes.

        Args:
            denoiser, strategy: in eval mode.
            x_t: ``[B, *event]``.
            level: the noise level, with t in (0, 1], 0-dimensional or ``[B]``.
            condition: labels, int64 ``[B]`` in 0..K-1; None if no class is requested.
        """
        knows_classes = denoiser.num_classes is not None or self.classifier is None
        own: Prediction = denoiser(x_t, level, condition if knows_classes else None)
        return self.steer(denoiser, strategy, own, condition)

    def steer(
        self, denoiser: Denoiser, strategy: VarianceStrategy, own: Prediction, condition: Tensor | None
    ) -> Prediction:
        """Change the network's own prediction; arguments as in `predict`."""
        return own

    def own(self, prediction: Prediction) -> Prediction:
        """The network's own prediction behind a guided one, from which a strategy models the covariance."""
        return prediction.start if isinstance(prediction, GuidedPrediction) else prediction

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        """``Cov[x_s | x_t]`` that matches a guided prediction."""
        return strategy.transition(kernel, denoiser, self.own(prediction))

    def covariance(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        """``Cov[x_0 | x_t]`` that matches a guided prediction, bounded; see `x0_covariance` for step models."""
        return x0_covariance(kernel, denoiser, strategy, self.own(prediction))


def x0_covariance(
    kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
) -> Covariance:
    """C as a strategy models it, bounded; for a strategy that models the step, the C that would give the same step."""
    if isinstance(strategy, CovarianceModel):
        return strategy.bounded_covariance(denoiser, prediction)
    # in float64, because at large t the step differs from lambda^2 by only one part in a million
    step = strategy.transition(kernel, denoiser, replace(prediction, x_t=prediction.x_t.double()))
    return step.affine(kernel.c**-2, -kernel.lambda_sq / kernel.c**2)


def finite(weight: float) -> float:
    """Check a guidance weight and return it.

    Raises:
        ValueError: if it is not finite.
    """
    if not float("-inf") < weight < float("inf"):
        raise ValueError(f"guidance.weight must be finite (got {weight}): give a number, such as 1 or 3")
    return float(weight)
