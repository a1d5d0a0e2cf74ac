"""A denoiser combines a network, the path it was trained on, and the meaning of its output.

Whatever the network predicts, a `Denoiser` returns both ``E[x_0|x_t]`` and ``E[eps|x_t]``, related by
``x_t = alpha_t x_0 + sigma_t eps``.  It alone decides which number the network is fed as time; heads and classifiers
are fed the same number.

A class-conditional network with K classes predicts ``E[x_0|x_t, y]`` for labels y in 0..K-1, and ``E[x_0|x_t]`` for the
null label K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from optcov.data_range import DataRange
from optcov.parameterization import Eps, Parameterization
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample

NO_GRADIENT = "its answer has no gradient in x, as under torch.no_grad"


class Network(Protocol):
    """The interface of a mean network: its shapes, and a call ``(x_t, time) -> (output, features)``.

    A class-conditional network also has ``num_classes``, and takes labels, int64 ``[B]``, as its third argument.
    """

    data_shape: tuple[int, ...]  # shape of one sample: (C, H, W) for images, (D,) for vectors
    feature_channels: int  # channels of the last feature map, before the output norm, which heads read

    def __call__(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Prediction:
    """The record of one network call: its inputs and its results.

    Args:
        x_t: the batch, ``[B, *event]``.
        level: the noise level of the batch, 0-dimensional or ``[B]``.
        x0: ``m = E[x_0|x_t]``, ``[B, *event]``.
        eps: ``e = E[eps|x_t]``, ``[B, *event]``.
        output: ``E[f|x_t]`` for the target f of the denoiser's parameterization, ``[B, *event]``.
        features: the network's last feature map, ``[B, feature_channels, ...]``.
        condition: the labels given to the network, including null labels, ``[B]``; None if it is unconditional.
    """

    x_t: Tensor
    level: NoiseLevels
    x0: Tensor
    eps: Tensor
    output: Tensor
    features: Tensor
    condition: Tensor | None = None


@dataclass
class Cost:
    """Counts a denoiser's work since the last `reset`, as evaluations times samples.

    Args:
        nfe: network evaluations.
        ne: network equivalents.  An evaluation counts 1.  A product with the Jacobian repeats one evaluation, which
            counts 1, and adds 1 (Jacobian-vector product) or 2 (vector-Jacobian product).
        classifier_calls: evaluations of a guiding classifier, each forward and backward; not part of nfe or ne.
    """

    nfe: int = 0
    ne: int = 0
    classifier_calls: int = 0

    def add(self, samples: int, nfe: int = 0, ne: int = 0, classifier_calls: int = 0) -> None:
        """Count ``nfe`` evaluations, ``ne`` equivalents and ``classifier_calls`` for each of ``samples`` samples."""
        self.nfe += nfe * samples
        self.ne += ne * samples
        self.classifier_calls += classifier_calls * samples

    def since(self, before: Cost) -> Cost:
        """What was added to an earlier count."""
        return Cost(self.nfe - before.nfe, self.ne - before.ne, self.classifier_calls - before.classifier_calls)

    def reset(self) -> None:
        """Set the counts to 0."""
        self.nfe = self.ne = self.classifier_calls = 0


class Denoiser(nn.Module):
    """Predicts clean data and noise from noisy data.

    Args:
        network: the mean network; see `Network`.
        schedule: the forward process on which the network was trained.
        parameterization: the meaning of the network's output.
        time_offset: the network is fed ``(n + time_offset) * 1000 / N``; 0 as in DDPM's CIFAR-10 network, -1 for
            networks that count from 0.
        data_range: the range of the data.
        time: function of the noise level that replaces this formula; see `optcov.adapter.time`.
    Attributes:
        cost: counts network evaluations at each call.
    Raises:
        ValueError: if the parameterization does not determine x_0 everywhere on this schedule.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization | None = None,
        time_offset: int = 0,
        data_range: DataRange | None = None,
        time: Callable[[NoiseLevels], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization or Eps()
        self.parameterization.check(schedule)
        self.time_offset, self.time = time_offset, time
        self.data_range = data_range or DataRange()
        self.cost = Cost()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.network.data_shape)  # type: ignore[arg-type]

    @property
    def feature_channels(self) -> int:
        """Channels of ``Prediction.features``."""
        return int(self.network.feature_channels)  # type: ignore[arg-type]

    @property
    def num_classes(self) -> int | None:
        """K, the number of classes and also the null label; None for an unconditional network."""
        return getattr(self.network, "num_classes", None)

    @property
    def has_null_label(self) -> bool:
        """Whether the network can be asked without a class."""
        return bool(getattr(self.network, "has_null_label", True))

    def levels(self, t: Tensor) -> NoiseLevels:
        """The noise levels at times of any shape; compute them once for a chain.  See `NoiseLevels`."""
        return self.schedule.levels(t)

    def network_time(self, level: NoiseLevels) -> Tensor:
        """The number the network is fed as time at a level; float64, shape of the level."""
        if self.time is not None:
            return self.time(level)
        return (level.t * self.schedule.num_steps + self.time_offset) * 1000 / self.schedule.num_steps

    def forward(self, x_t: Tensor, level: NoiseLevels, condition: Tensor | None = None) -> Prediction:
        """Predict at a noise level.

        Args:
            x_t: ``[B, *event]``.
            level: noise level with t in (0, 1], 0-dimensional or ``[B]``.
            condition: labels, int64 ``[B]`` in 0..K, where K is the null label.  None stands for null labels, and is
                required for an unconditional network.
        Raises:
            ValueError: if labels are given to an unconditional network, or none to one that has no null label.
        """
        condition = self._condition(len(x_t), condition, x_t.device)
        self.cost.add(len(x_t), nfe=1, ne=1)
        output, features = self._call(x_t, level, condition)
        return self.prediction(x_t, level, output, features, condition)

    def prediction(
        self, x_t: Tensor, level: NoiseLevels, output: Tensor, features: Tensor, condition: Tensor | None
    ) -> Prediction:
        """Make the record of a network call; its tensors have the precision of ``x_t``."""
        output = output.to(x_t.dtype)  # autocast may have left it in half precision
        x0 = self.parameterization.x0(x_t, output, level)
        eps = self.parameterization.eps(x_t, output, level)
        return Prediction(x_t, level, x0, eps, output, features, condition)

    def jvp(self, prediction: Prediction, v: Tensor) -> Tensor:
        """``(dm/dx_t) v`` at a prediction, ``[B, *event]``, in forward mode; NFE 1, NE 2."""
        self.cost.add(len(v), nfe=1, ne=2)

        def x0_of(x_t: Tensor) -> Tensor:
            output, _ = self._call(x_t, prediction.level, prediction.condition)
            if torch.autograd.forward_ad.unpack_dual(output).tangent is None:  # type: ignore[no-untyped-call]
                raise RuntimeError(NO_GRADIENT)
            return self.parameterization.x0(x_t, output.to(x_t.dtype), prediction.level)

        at = prediction.x_t.contiguous()  # one point for many samples may be a view, which has no dual
        product: Tensor = torch.func.jvp(x0_of, (at,), (v,))[1]
        return product

    def vjp(self, prediction: Prediction, v: Tensor) -> Tensor:
        """``(dm/dx_t)^T v`` at a prediction, ``[B, *event]``, by a backward pass; NFE 1, NE 3."""
        self.cost.add(len(v), nfe=1, ne=3)
        with torch.enable_grad():
            x_t = prediction.x_t.detach().requires_grad_()
            output, _ = self._call(x_t, prediction.level, prediction.condition)
            if not output.requires_grad:
                raise RuntimeError(NO_GRADIENT)
            x0 = self.parameterization.x0(x_t, output.to(x_t.dtype), prediction.level)
            (product,) = torch.autograd.grad(x0, x_t, v)
        return product

    def diffuse(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        """``x_t = alpha_t x_0 + sigma_t eps`` for white noise ``eps``, each ``[B, *event]``."""
        return per_sample(level.alpha, x_0) * x_0 + per_sample(level.sigma, x_0) * eps

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        """The correct output of the network for given data and noise, ``[B, *event]``."""
        return self.parameterization.target(x_0, eps, level)

    def loss(self, prediction: Prediction, target: Tensor) -> Tensor:
        """``||f - f_net||^2`` of each sample, ``[B]`` (for `Eps`: DDPM, Eq. 14)."""
        return ((target - prediction.output) ** 2).flatten(1).sum(1)

    def _condition(self, count: int, condition: Tensor | None, device: torch.device) -> Tensor | None:
        if self.num_classes is None:
            if condition is not None:
                raise ValueError("labels must be left out (got labels): the network knows no classes")
            return None
        if condition is not None:
            return condition
        if not self.has_null_label:
            raise ValueError(
                "labels must be given for a network without a null class (got none): give labels=, or null_class= to "
                "optcov.load if it has one"
            )
        return torch.full((count,), self.num_classes, device=device)

    def _call(self, x_t: Tensor, level: NoiseLevels, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        time = self.network_time(level).to(x_t.dtype).expand(len(x_t))
        c_in = self.parameterization.c_in(level)
        scaled = x_t if c_in is None else per_sample(c_in, x_t) * x_t
        if condition is None:
            return self.network(scaled, time)  # type: ignore[no-any-return]
        return self.network(scaled, time, condition)  # type: ignore[no-any-return]


def not_finite(t: float) -> ValueError:
    """What to say to a network whose answer at time t is not finite."""
    return ValueError(
        f"network must return finite numbers at every time (got NaN or infinity at t = {t:.4g}): look at its time and "
        "schedule"
    )


def device_of(module: nn.Module) -> torch.device:
    """The device of a module; the CPU if it has neither weights nor buffers."""
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
