r"""Guidance: an update of the prediction and of its covariance, of which samplers know nothing.

Every guided noise prediction here is ``e = -sigma_t grad log q_w(x_t)`` of some density ``q_w`` of x_t.  By the
second-order Tweedie formula the covariance that goes with it is, with ``r = sigma_t^2 / alpha_t^2``,

    C = r (I - sigma_t de/dx_t)

and that is affine in e: as means are mixed, so are covariances.  It is ``Cov[x_0 | x_t]`` where the ``q_w`` of all t
are the diffusion of one distribution of x_0.  Products and powers of diffused densities are that for Gaussians of equal
covariance, where all of this is exact, and not in general: no distribution need lie behind a guided chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.schedule.levels import NoiseLevels
from optcov.variance.base import CovarianceModel, VarianceStrategy


@dataclass(frozen=True, kw_only=True)
class GuidedPrediction(Prediction):
    """A guided mean, and the network's own answers, from which a strategy models the covariance.

    Args:
        start: the answer whose covariance is ``C_0``.
        end: if there is one, the covariance is ``C_0 + weight (C_1 - C_0)``.
        weight: of the guidance.
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
        classifier: what is to be trained, ``(x_t, network_time) -> logits``; None for guidance that needs none.
        uses_null_label: whether the denoiser must have learned the null label.
        steers: whether predictions are others than the network's own.
    """

    classifier: nn.Module | None
    uses_null_label: bool = False
    steers: bool = False

    def __init__(self, denoiser: Denoiser | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        self.classifier = None

    def predict(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        x_t: Tensor,
        level: NoiseLevels,
        condition: Tensor | None,
    ) -> Prediction:
        """The prediction for wanted classes.

        Args:
            denoiser, strategy: in eval mode.
            x_t: ``[B, *event]``.
            level: with t in (0, 1], 0-dimensional or ``[B]``.
            condition: labels, int64 ``[B]`` in 0..K-1; None where nothing is wanted.
        """
        return denoiser(x_t, level, condition)  # type: ignore[no-any-return]

    def own(self, prediction: Prediction) -> Prediction:
        """The network's own answer behind a prediction, from which a strategy models its covariance."""
        return prediction.start if isinstance(prediction, GuidedPrediction) else prediction

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        """``Cov[x_s | x_t]`` that goes with a guided prediction."""
        return strategy.transition(kernel, denoiser, self.own(prediction))

    def covariance(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        """``Cov[x_0 | x_t]`` that goes with a guided prediction, bounded; of a step model, the C behind its step."""
        return x0_covariance(kernel, denoiser, strategy, self.own(prediction))


def x0_covariance(
    kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
) -> Covariance:
    """C as a strategy models it, bounded; of a strategy that models the step, the C that would make such a step."""
    if isinstance(strategy, CovarianceModel):
        return strategy.bounded_covariance(denoiser, prediction)
    # in float64: at large t the step differs from lambda^2 by a millionth part
    step = strategy.transition(kernel, denoiser, replace(prediction, x_t=prediction.x_t.double()))
    return step.affine(kernel.c**-2, -kernel.lambda_sq / kernel.c**2)


def finite(weight: float) -> float:
    """The weight of a guidance, if it is a number.

    Raises:
        ValueError: if it is not finite.
    """
    if not float("-inf") < weight < float("inf"):
        raise ValueError(f"guidance.weight must be finite (got {weight}): give a number, such as 1 or 3")
    return float(weight)
