"""A variance strategy is a model of ``C = Cov[x_0 | x_t]``, and nothing else; the kernel turns C into a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel

HeadFactory = Callable[[int, tuple[int, ...]], nn.Module]
"""``(feature_channels, data_shape) -> head``, a module ``(features, t) -> [B, *event]``."""


class VarianceStrategy(nn.Module):
    """Base of all strategies.

    A strategy is built for a denoiser, whose shapes it reads and which it does not keep.

    Attributes:
        fitting: ``none``; ``calibrate``, one pass over data that fills buffers; or ``train``, gradient steps on
            :meth:`loss` while the denoiser is frozen and in eval mode.
        cut_last: whether a sampler may bound the noise of its last stochastic step, as was published for fitted
            variances; those that DDPM and Improved DDPM prescribe were published as they are.
        num_images: how many images a calibration wants.
    """

    fitting: ClassVar[Literal["none", "calibrate", "train"]] = "none"
    cut_last: bool = True
    num_images: int = 0

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()

    @property
    def models_step(self) -> bool:
        """Whether it has a :meth:`transition` of its own, and no :meth:`covariance`."""
        return type(self).covariance is VarianceStrategy.covariance

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        """``Cov[x_0 | x_t]`` as this strategy models it, before bounds.

        Args:
            denoiser: the mean network with its schedule.
            prediction: its answer at ``(x_t, t)``, not clipped.
            x_t: ``[B, *event]``.
            t: float64 in (0, 1], 0-dimensional or ``[B]``.
        """
        raise NotImplementedError(f"{type(self).__name__} models no Cov[x_0 | x_t]")

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor
    ) -> Covariance:
        """``Cov[x_s | x_t]``, eigenvalues of C clamped to [0, 1] (data in [-1, 1]: Analytic-DPM, Theorem 2)."""
        return kernel.covariance(self.covariance(denoiser, prediction, x_t, t).clamp(0.0, 1.0))

    def check_step(self, eta: float) -> None:
        """Refuse samplers whose steps this strategy has no meaning for; every eta has one unless overridden.

        Raises:
            ValueError: naming eta and what is possible.
        """

    def loss(self, denoiser: Denoiser, prediction: Prediction, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Loss of each sample, ``[B]``, of a strategy with ``fitting == "train"``; ``eps`` is the noise in ``x_t``."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        """Fill the buffers of a strategy with ``fitting == "calibrate"``.

        Args:
            denoiser: the mean network, in eval mode.
            batches: clean data ``[B, *event]`` in [-1, 1], on the denoiser's device.
            seed: of the noise.
            labels: of the data, int64 ``[n]`` in the order of the batches, for a denoiser that knows classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to calibrate")
