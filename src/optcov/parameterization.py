r"""Parameterizations: a network predicts ``f``, where ``x_0 = c_skip x_t + c_out f``, so ``C = c_out^2 Cov[f | x_t]``.

| class      | f                                | c_skip                  | c_out                              |
|------------|----------------------------------|-------------------------|------------------------------------|
| `Eps`      | eps                              | 1 / alpha_t             | -sigma_t / alpha_t                 |
| `Score`    | grad log p(x_t), -eps / sigma_t  | 1 / alpha_t             | sigma_t^2 / alpha_t                |
| `X0`       | x_0                              | 0                       | 1                                  |
| `V`        | alpha_t eps - sigma_t x_0        | alpha_t                 | -sigma_t                           |
| `Velocity` | eps - x_0                        | 1 / (alpha_t + sigma_t) | -sigma_t / (alpha_t + sigma_t)     |
| `EDM`      | F of arXiv:2206.00364, Eq. 7     | s_d^2 / (s^2 + s_d^2)   | s s_d / sqrt(s^2 + s_d^2)          |

Here ``s = sigma_t / alpha_t``; in EDM's row ``x_t / alpha_t`` replaces ``x_t``.  All except `V` work on any path.

Sources: DDPM (arXiv:2006.11239); for v, progressive distillation (arXiv:2202.00512), Eq. 9; for the velocity, flow
matching (arXiv:2210.02747).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optcov.ranges import Positive
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.schedule.vp import VPSchedule


class Parameterization(ABC):
    """Defines what a network's output means."""

    @abstractmethod
    def c_skip(self, level: NoiseLevels) -> Tensor:
        """Factor of x_t in x_0; float64, shape of the level."""

    @abstractmethod
    def c_out(self, level: NoiseLevels) -> Tensor:
        """Factor of the output in x_0; float64, shape of the level."""

    def c_out_sq(self, level: NoiseLevels) -> Tensor:
        """``c_out^2``, which turns a variance of the target into a variance of x_0; float64, shape of the level."""
        return self.c_out(level) ** 2

    def c_in(self, level: NoiseLevels) -> Tensor | None:
        """Factor by which x_t is multiplied before it enters the network; None for 1."""
        return None

    @abstractmethod
    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        """f from clean data and noise, or E[f|x_t] from their conditional means; all ``[B, *event]``."""

    def expected_square(self, target: Tensor) -> Tensor:
        """``E[f^2]`` if it is known without data, otherwise ``f^2`` of this one draw; ``[B, *event]``."""
        return target**2

    def x0(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        """``E[x_0|x_t]`` from the output, ``[B, *event]``."""
        return per_sample(self.c_skip(level), x_t) * x_t + per_sample(self.c_out(level), x_t) * output

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        """``E[eps|x_t]`` from the output, ``[B, *event]``."""
        x0 = self.x0(x_t, output, level)
        return (x_t - per_sample(level.alpha, x_t) * x0) / per_sample(level.sigma, x_t)

    def check(self, schedule: NoiseSchedule) -> None:  # noqa: B027 (most hold on every path)
        """Refuse a path on which the target says nothing about x_0.

        Raises:
            ValueError: if the path is of this kind; the message is one sentence.
        """


def check_signal(parameterization: Parameterization, schedule: NoiseSchedule) -> None:
    """Refuse a path that ends without signal, where a target that is only noise says nothing about x_0.

    Raises:
        ValueError: if the path ends without signal; the message is one sentence.
    """
    if not bool(schedule.alpha(schedule.grid()[-1]) > 0):
        raise ValueError(
            "parameterization must determine x_0 at t = 1, where this schedule leaves no signal (got "
            f"{type(parameterization).__name__.lower()}): set parameterization=velocity or parameterization=x0"
        )


class Eps(Parameterization):
    """The noise, as in DDPM and in the papers on covariance."""

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return 1 / level.alpha

    def c_out(self, level: NoiseLevels) -> Tensor:
        return -level.sigma / level.alpha

    def c_out_sq(self, level: NoiseLevels) -> Tensor:
        return level.noise_variance

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        return eps

    def expected_square(self, target: Tensor) -> Tensor:
        return torch.ones_like(target)

    def x0(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        return (x_t - per_sample(level.sigma, x_t) * output) / per_sample(level.alpha, x_t)

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        return output

    def check(self, schedule: NoiseSchedule) -> None:
        check_signal(self, schedule)


class Score(Parameterization):
    """The score ``grad log p_t(x_t) = -E[eps|x_t] / sigma_t``, as score-SDE networks predict it (arXiv:2011.13456)."""

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return 1 / level.alpha

    def c_out(self, level: NoiseLevels) -> Tensor:
        return level.sigma**2 / level.alpha

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        return -eps / per_sample(level.sigma, x_0)

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        return -per_sample(level.sigma, x_t) * output

    def check(self, schedule: NoiseSchedule) -> None:
        check_signal(self, schedule)


class X0(Parameterization):
    """The clean data."""

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return torch.zeros_like(level.alpha)

    def c_out(self, level: NoiseLevels) -> Tensor:
        return torch.ones_like(level.alpha)

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        return x_0

    def x0(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        return output


class V(Parameterization):
    """The velocity of the angle between signal and noise, on variance-preserving paths."""

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return level.alpha

    def c_out(self, level: NoiseLevels) -> Tensor:
        return -level.sigma

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        return per_sample(level.alpha, x_0) * eps - per_sample(level.sigma, x_0) * x_0

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        return per_sample(level.sigma, x_t) * x_t + per_sample(level.alpha, x_t) * output

    def check(self, schedule: NoiseSchedule) -> None:
        grid = schedule.grid()
        total = schedule.alpha(grid) ** 2 + schedule.sigma(grid) ** 2
        if not isinstance(schedule, VPSchedule) and bool(((total - 1).abs() > 1e-6).any()):
            raise ValueError(
                f"parameterization must be eps, x0, velocity or edm on {type(schedule).__name__} (got v, which is "
                "defined where alpha^2 + sigma^2 = 1): set parameterization=velocity"
            )


class Velocity(Parameterization):
    """``dx_t/dt`` along the straight path, as flow matching predicts it."""

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return 1 / (level.alpha + level.sigma)

    def c_out(self, level: NoiseLevels) -> Tensor:
        return -level.sigma / (level.alpha + level.sigma)

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        return eps - x_0

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        total = per_sample(level.alpha + level.sigma, x_t)
        return (x_t + per_sample(level.alpha, x_t) * output) / total


class EDM(Parameterization):
    """The preconditioned output F of EDM, which has about unit variance at every level.

    Args:
        sigma_data: standard deviation of the data, s_d; positive.
    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, sigma_data: Positive = 0.5) -> None:
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"parameterization.sigma_data must be positive (got {sigma_data}): give 0.5, as published")
        self.sigma_data = sigma_data

    def _total(self, level: NoiseLevels) -> Tensor:
        """``sigma_t^2 + alpha_t^2 s_d^2``: the variance of x_t."""
        return level.sigma**2 + (level.alpha * self.sigma_data) ** 2

    def c_skip(self, level: NoiseLevels) -> Tensor:
        return level.alpha * self.sigma_data**2 / self._total(level)

    def c_out(self, level: NoiseLevels) -> Tensor:
        return level.sigma * self.sigma_data / self._total(level).sqrt()

    def c_in(self, level: NoiseLevels) -> Tensor:
        return self._total(level).rsqrt()

    def target(self, x_0: Tensor, eps: Tensor, level: NoiseLevels) -> Tensor:
        # (x_0 - c_skip x_t) / c_out, without the subtraction that cancels where sigma is small
        scale = self._total(level).rsqrt()
        signal, noise = level.sigma / self.sigma_data * scale, level.alpha * self.sigma_data * scale
        return per_sample(signal, x_0) * x_0 - per_sample(noise, x_0) * eps

    def eps(self, x_t: Tensor, output: Tensor, level: NoiseLevels) -> Tensor:
        # without x_t - alpha x_0, which cancels where sigma is small
        total = self._total(level)
        keep, change = level.sigma / total, level.alpha * self.sigma_data * total.rsqrt()
        return per_sample(keep, x_t) * x_t - per_sample(change, x_t) * output
