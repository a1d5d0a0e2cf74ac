"""Variance strategies model ``Cov[x_0 | x_t]``, or the covariance of a step, for a given mean network.

The base class says how a strategy is fitted: `Closed` has nothing to fit, `Calibrated` fills its buffers in one pass
over data, and `Trained` takes gradient steps on a loss.  It also says what the strategy models: a `CovarianceModel`
returns C, which the kernel turns into a step, and a `StepModel` returns the covariance of the step itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel

HeadFactory = Callable[[int, tuple[int, ...]], nn.Module]
"""``(feature_channels, data_shape) -> head``, a module ``(features, network_time) -> [B, *event]``."""


@dataclass(frozen=True)
class Traits:
    """What a strategy reads of a denoiser, as plain values.

    Args:
        data_shape, feature_channels, num_classes, learned_sigma: of the network.
        num_steps, log_snr: N, and the path's log SNR at t = 1/4, 1/2 and 3/4.
        parameterization: the class, whose target the strategy's numbers are of.
    """

    data_shape: tuple[int, ...]
    feature_channels: int
    num_classes: int | None
    learned_sigma: bool
    num_steps: int
    log_snr: tuple[float, ...]
    parameterization: str

    @classmethod
    def of(cls, denoiser: Denoiser) -> Traits:
        """Those of a denoiser."""
        log_snr = denoiser.schedule.log_snr(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu"))
        return cls(
            denoiser.data_shape,
            denoiser.feature_channels,
            denoiser.num_classes,
            bool(getattr(denoiser.network, "learned_sigma", False)),
            denoiser.schedule.num_steps,
            tuple(round(value, 4) for value in log_snr.tolist()),
            type(denoiser.parameterization).__name__,
        )


class VarianceStrategy(nn.Module, ABC):
    """Base class of all strategies.

    A strategy is built for a denoiser; it reads the denoiser's shapes but does not keep it.

    Attributes:
        given: the arguments of the constructor besides the denoiser, with which a saved strategy is made again.
        made_for: what a denoiser must share to be used with the strategy: see `Traits`.
        needs_fit: whether a new strategy must be fitted before use.
        cut_last: whether a sampler may bound the noise of its last stochastic step, as published for fitted variances;
            the variances of DDPM and Improved DDPM were published without such a bound.
    """

    cut_last: bool = True

    @property
    def needs_fit(self) -> bool:
        return False

    given: dict[str, Any]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        taken = signature(cls.__init__)  # what a class takes, which `__new__` would hide
        cls.__signature__ = taken.replace(parameters=list(taken.parameters.values())[1:])  # type: ignore[attr-defined]

    def __new__(cls, *arguments: Any, **settings: Any) -> Self:
        made = super().__new__(cls)
        try:
            bound = signature(cls.__init__).bind(made, *arguments, **settings).arguments
        except TypeError:  # the constructor will say
            bound = {}
        object.__setattr__(
            made, "given", {name: value for name, value in bound.items() if name not in ("self", "denoiser")}
        )
        return made

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.made_for = Traits.of(denoiser)

    def save_pretrained(self, folder: str | Path, denoiser: Denoiser | None = None) -> None:
        """Write ``strategy.safetensors`` and ``strategy.json`` into a folder, for `optcov.load_strategy`.

        Args:
            folder: made where there is none.
            denoiser: the one it was fitted to; its weights are then known to the file by their SHA-256.
        Raises:
            ValueError: if the strategy was not fitted, or is not one of optcov.
        """
        from optcov.variance.saved import save

        save(Path(folder), denoiser, self)

    @abstractmethod
    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """``Cov[x_s | x_t]`` of the step that ``kernel`` describes.

        Args:
            kernel: the kernel of the step, which starts at the prediction's level.
            denoiser: the mean network; a strategy may call it again (calls are counted) and may turn gradients on.
            prediction: the network's prediction, not clipped.
        """

    def check_step(self, eta: float) -> None:
        """Refuse samplers for whose steps this strategy is not defined.

        Raises:
            ValueError: if it is not defined for this eta; the message names eta and what is possible.
        """


class CovarianceModel(VarianceStrategy):
    """A strategy that models ``C = Cov[x_0 | x_t]``."""

    @abstractmethod
    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """C as this strategy models it, before bounds."""

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        """C with its diagonal limited to the largest variance of data in this range (Analytic-DPM, Theorem 2)."""
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
        num_images: how many images the pass needs.
        progress: whether the pass shows a bar.
    """

    num_images: int = 0
    progress: bool = True

    @property
    def needs_fit(self) -> bool:
        return True

    @abstractmethod
    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        """Fill the buffers.

        Args:
            denoiser: the mean network, in eval mode.
            batches: clean data ``[B, *event]`` in the denoiser's range, on its device.
            seed: seed of the noise.
            labels: class of each image, int64 ``[n]`` in the order of the batches; only for class-conditional
                denoisers.
        """


@dataclass(frozen=True)
class Clean:
    """Clean data on which a trajectory or a sampler is measured.

    Args:
        batches: ``[B, *event]`` each, in the denoiser's range and on its device.
        seed: seed of the noise.
        labels: class of each sample, int64 ``[n]`` in the order of the batches; only for class-conditional denoisers.
    """

    batches: Sequence[Tensor]
    seed: int = 0
    labels: Tensor | None = None


class Trained(VarianceStrategy):
    """A strategy that learns by gradient steps while the denoiser is frozen and in eval mode."""

    @property
    def needs_fit(self) -> bool:
        return any(True for _ in self.parameters())  # not where the network itself answers with the variance

    @abstractmethod
    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        """The loss of each sample, ``[B]``.

        Args:
            denoiser: the mean network.
            prediction: its prediction, with a level ``[B]``.
            target: f of the clean data and the noise in ``prediction.x_t``; see `Denoiser.target`.
        """


class TrainedHead(Trained):
    """A strategy that learns one or more numbers per pixel from the features of the mean network.

    Args:
        denoiser: the mean network, used only for its shapes.
        head: makes the head from ``(feature_channels, data_shape)``; see `several` for a head of several numbers.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser)
        self.head = head(denoiser.feature_channels, denoiser.data_shape)

    def head_output(self, denoiser: Denoiser, prediction: Prediction) -> Tensor:
        """The output of a head with one number per pixel, ``[B, *event]``, in the precision of ``x_t``."""
        output: Tensor = self.head(prediction.features, denoiser.network_time(prediction.level))
        return output.to(prediction.x_t.dtype)

    def head_outputs(self, denoiser: Denoiser, prediction: Prediction) -> Tensor:
        """The output of a head with several numbers per pixel, ``[B, outputs, *event]``, precise as ``x_t``."""
        output = self.head_output(denoiser, prediction)
        return output.reshape(len(output), -1, *prediction.x_t.shape[1:])


def several(head: HeadFactory, outputs: int) -> HeadFactory:
    """Makes a head with several numbers per pixel, which is a head for data with that many times the channels."""
    return lambda feature_channels, data_shape: head(feature_channels, (outputs * data_shape[0], *data_shape[1:]))
