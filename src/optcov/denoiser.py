"""A denoiser: a network, the schedule it was trained on, and what its output means.

Whatever the network predicts, a :class:`Denoiser` answers with both ``E[x_0|x_t]`` and ``E[eps|x_t]``, tied by
``x_t = alpha_t x_0 + sigma_t eps``.  What a network is fed as its time is settled here and nowhere else.

A network that knows K classes answers with ``E[x_0|x_t, y]`` for labels y in 0..K-1, and with ``E[x_0|x_t]`` for the
null label K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from optcov.broadcast import per_sample
from optcov.chain import once_per_chain
from optcov.schedule.base import NoiseSchedule

Parameterization = Literal["eps", "x0", "v"]


class Network(Protocol):
    """What a mean network offers: its shapes, and ``(x_t, time) -> (output, features)``.

    One that knows classes has ``num_classes``, too, and takes labels, int64 ``[B]``, as its third argument.
    """

    data_shape: tuple[int, ...]  # of one sample: (C, H, W) for images, (D,) for vectors
    feature_channels: int  # of the last feature map, before the output norm: what heads read

    def __call__(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Prediction:
    """What is known of a batch at time t.

    Args:
        x0: ``m = E[x_0|x_t]``, ``[B, *event]``.
        eps: ``e = E[eps|x_t]``, ``[B, *event]``.
        features: the network's last feature map, ``[B, feature_channels, ...]``.
        labels: those that the network was given, null labels among them, ``[B]``; None if it knows no classes.
    """

    x0: Tensor
    eps: Tensor
    features: Tensor
    labels: Tensor | None = None


class Denoiser(nn.Module):
    """Predicts clean data and noise from noisy data.

    Args:
        network: see :class:`Network`.
        schedule: the forward process the network belongs to.
        parameterization: what the network's output is: ``eps``, ``x0``, or ``v = alpha_t eps - sigma_t x_0``.
        time_offset: the network is fed ``(n + time_offset) * 1000 / N``; 0 as in DDPM's CIFAR-10 network, -1 for
            networks that count from 0.
    Raises:
        ValueError: if the parameterization is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization = "eps",
        time_offset: int = 0,
    ) -> None:
        super().__init__()
        if parameterization not in get_args(Parameterization):
            raise ValueError(f"parameterization = {parameterization} is unknown: give eps, x0 or v")
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization
        self.time_offset = time_offset

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
        """K, the classes that the network knows, and its null label; None for a network without."""
        return getattr(self.network, "num_classes", None)

    def given(self, labels: Tensor) -> Given:
        """The denoiser of samples whose labels, int64 ``[B]``, are known; it takes ``(x_t, t)`` of these B samples."""
        return Given(self, labels)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        """Predict at time ``t``.

        Args:
            x_t: ``[B, *event]``.
            t: float64 in (0, 1], 0-dimensional or ``[B]``.
            labels: int64 ``[B]`` in 0..K, of which K is the null label; None for null labels, and for a network
                without classes.
        Raises:
            ValueError: if there are labels and the network knows no classes.
        """
        time = self.network_time(t).to(x_t.dtype).expand(len(x_t))
        if self.num_classes is not None:
            if labels is None:
                labels = torch.full((len(x_t),), self.num_classes, device=x_t.device)
            output, features = self.network(x_t, time, labels)
        elif labels is not None:
            raise ValueError("labels were given to a network that knows no classes: leave them out")
        else:
            output, features = self.network(x_t, time)
        output = output.to(x_t.dtype)  # autocast may have left it in half precision
        alpha, sigma = per_sample(self.schedule.alpha(t), x_t), per_sample(self.schedule.sigma(t), x_t)
        if self.parameterization == "eps":
            return Prediction((x_t - sigma * output) / alpha, output, features, labels)
        if self.parameterization == "x0":
            return Prediction(output, (x_t - alpha * output) / sigma, features, labels)
        return Prediction(alpha * x_t - sigma * output, sigma * x_t + alpha * output, features, labels)

    @once_per_chain
    def network_time(self, t: Tensor) -> Tensor:
        """What the network is fed at ``t``; float64, shape of ``t``."""
        return (t * self.schedule.num_steps + self.time_offset) * 1000 / self.schedule.num_steps

    def diffuse(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``x_t = alpha_t x_0 + sigma_t eps`` for white noise ``eps``, each ``[B, *event]``."""
        return per_sample(self.schedule.alpha(t), x_0) * x_0 + per_sample(self.schedule.sigma(t), x_0) * eps

    def loss(self, prediction: Prediction, eps: Tensor) -> Tensor:
        """``||eps - e||^2`` of each sample, ``[B]`` (DDPM, Eq. 14)."""
        return ((eps - prediction.eps) ** 2).flatten(1).sum(1)


class Given(Denoiser):
    """A denoiser of B samples whose labels are known, for all that asks with ``(x_t, t)`` alone.

    Args:
        denoiser: shared, not copied.
        labels: int64 ``[B]``, on its device.
    """

    def __init__(self, denoiser: Denoiser, labels: Tensor) -> None:
        super().__init__(denoiser.network, denoiser.schedule, denoiser.parameterization, denoiser.time_offset)
        self.denoiser, self.labels = denoiser, labels

    def given(self, labels: Tensor) -> Given:
        return self.denoiser.given(labels)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        return self.denoiser(x_t, t, self.labels)  # type: ignore[no-any-return]


@once_per_chain
def noise_variance(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """``r = sigma_t^2 / alpha_t^2``, with which ``Cov[x_0|x_t] = r Cov[eps|x_t]``; float64, shape of ``t``."""
    return torch.exp(-schedule.log_snr(t))
