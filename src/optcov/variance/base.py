"""A variance strategy: a model of ``Cov[x_0 | x_t]``, or of a step's covariance, beside a mean network.

How a strategy is fitted is its class: `Closed` has nothing to fit, `Calibrated` fills its buffers in one
pass over data, `Trained` takes gradient steps on a loss.  What it models is its class, too: a
`CovarianceModel` answers with C, which one kernel turns into a step, and a `StepModel` with the
covariance of the step itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel

HeadFactory = Callable[[int, tuple[int, ...]], nn.Module]
"""``(feature_channels, data_shape) -> head``, a module ``(features, network_time) -> [B, *event]``."""


class VarianceStrategy(nn.Module, ABC):
    """Base of all strategies.

    A strategy is built for a denoiser, whose shapes it reads and which it does not keep.

    Attributes:
        cut_last: whether a sampler may bound the noise of its last stochastic step, as was published for fitted
            variances; those that DDPM and Improved DDPM prescribe were published as they are.
    """

    cut_last: bool = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()

    @abstractmethod
    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """``Cov[x_s | x_t]`` of the step that ``kernel`` describes.

        Args:
            kernel: of the step from the prediction's level.
            denoiser: the mean network; a strategy may ask it more (it counts), and may turn gradients on.
            prediction: its answer, not clipped.
        """

    def check_step(self, eta: float) -> None:
        """Refuse samplers whose steps this strategy has no meaning for.

        Raises:
            ValueError: naming eta and what is possible.
        """


class CovarianceModel(VarianceStrategy):
    """A strategy that models ``C = Cov[x_0 | x_t]``."""

    @abstractmethod
    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """C as this strategy models it, before bounds."""

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """C with the diagonal that data of this range can have (Analytic-DPM, Theorem 2)."""
        return self.covariance(denoiser, prediction).bounded(denoiser.data_range.variance_bound)

    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return kernel.covariance(self.bounded_covariance(denoiser, prediction))


class StepModel(VarianceStrategy):
    """A strategy that models the covariance of a DDPM step (eta = 1) and has no C."""

    cut_last = False

    def check_step(self, eta: float) -> None:
        if eta != 1:
            raise ValueError(
                f"sampler.eta must be 1 for {type(self).__name__}, which models a DDPM step (got {eta}): "
                "set sampler=ddpm or sampler.eta=1, or choose another var"
            )


class Closed(CovarianceModel):
    """A strategy with nothing to fit."""


class Calibrated(CovarianceModel):
    """A strategy whose buffers are filled by one pass over data.

    Attributes:
        num_images: how many images the pass wants.
    """

    num_images: int = 0

    @abstractmethod
    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        """Fill the buffers.

        Args:
            denoiser: the mean network, in eval mode.
            batches: clean data ``[B, *event]`` in the denoiser's range, on its device.
            seed: of the noise.
            labels: of the data, int64 ``[n]`` in the order of the batches, for a denoiser that knows classes.
        """


class Trained(VarianceStrategy):
    """A strategy that learns by gradient steps while the denoiser is frozen and in eval mode."""

    @abstractmethod
    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        """Loss of each sample, ``[B]``.

        Args:
            denoiser: the mean network.
            prediction: its answer; level ``[B]``.
            target: f of the clean data and the noise in ``prediction.x_t``: see `Denoiser.target`.
        """


class TrainedHead(Trained):
    """A strategy that learns some numbers a pixel from the features of the mean network.

    Args:
        denoiser: the mean network, for its shapes.
        head: makes the head from ``(feature_channels, data_shape)``.
        outputs: numbers a pixel: a head of several is one of data with as many times the channels.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory, outputs: int = 1) -> None:
        super().__init__(denoiser)
        channels, *space = denoiser.data_shape
        self.head = head(denoiser.feature_channels, (outputs * channels, *space))

    def head_output(self, denoiser: Denoiser, prediction: Prediction) -> Tensor:
        """What a head of one number a pixel says at a prediction, ``[B, *event]``, in the precision of ``x_t``."""
        output: Tensor = self.head(prediction.features, denoiser.network_time(prediction.level))
        return output.to(prediction.x_t.dtype)

    def head_outputs(self, denoiser: Denoiser, prediction: Prediction) -> Tensor:
        """What a head of several numbers a pixel says, ``[B, outputs, *event]``, in the precision of ``x_t``."""
        output = self.head_output(denoiser, prediction)
        return output.reshape(len(output), -1, *prediction.x_t.shape[1:])
