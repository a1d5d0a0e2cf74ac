r"""Single-step solvers: a step from ``t`` to ``s`` uses only predictions made within it, as Runge-Kutta methods do.

The probability-flow ODE is ``d(x / alpha) / d(sigma / alpha) = e(x, t)`` (Score SDEs, arXiv:2011.13456, Eq. 13, in the
coordinates of EDM and DDIM).  After the j-th network call of a step, every explicit method for it therefore sets

    x = keep x_t + sum_k weights_k e_k,      k = 1..j

to reach the time of the next call, and finally s.  The last step, from the smallest time tau_1 to ``sigma_0 = 0``,
returns ``E[x_0 | x_{tau_1}]``.  This is Euler's step, which stays finite although log SNR is infinite at 0.  A first
step from a time without signal, ``alpha_t = 0``, is also Euler's: ``x_s = alpha_s m + sigma_s e``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.sampler.base import Model, Sampler, State
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample


@dataclass(frozen=True)
class Call:
    """One network call and the linear combination formed after it; coefficients are float64, 0-dimensional.

    Args:
        level: the noise level at which the network is called.
        keep: factor of x at the start of the step.
        weights: factors of the step's predictions of eps so far, first to last.
        ends: whether the combination is x_s, the end of the step.
        churn: ``(scale, amplitude)`` of ``x <- scale x + amplitude z`` before the call; None if no noise is added.
        signal: factor of the prediction of x_0; None for 0.
    """

    level: NoiseLevels
    keep: Tensor
    weights: tuple[Tensor, ...]
    ends: bool
    churn: tuple[Tensor, Tensor] | None = None
    signal: Tensor | None = None


def last_call(level: NoiseLevels, churn: tuple[Tensor, Tensor] | None = None) -> Call:
    """The call of the step to 0, which returns ``E[x_0 | x_t]``."""
    return Call(level, torch.zeros_like(level.t), (), True, churn)


def first_call(t: NoiseLevels, s: NoiseLevels) -> Call:
    """The call of a step from a level without any signal, ``x_s = alpha_s m + sigma_s e``."""
    return Call(t, torch.zeros_like(t.t), (s.sigma,), True, signal=s.alpha)


@dataclass(frozen=True)
class CallPlan:
    """All network calls of a chain, with their coefficients as tables that have one row per call."""

    calls: list[Call]
    levels: NoiseLevels
    keep: Tensor
    weights: Tensor
    churn: Tensor
    signal: Tensor

    @classmethod
    def of(cls, calls: list[Call]) -> CallPlan:
        """Gather the coefficients of the calls into tables."""
        return cls(
            calls,
            NoiseLevels.cat([call.level for call in calls]),
            torch.stack([call.keep for call in calls]),
            _table([call.weights for call in calls]),
            _table([call.churn or () for call in calls]),
            _table([() if call.signal is None else (call.signal,) for call in calls])[:, 0],
        )

    def __len__(self) -> int:
        return len(self.calls)

    def to(self, device: torch.device) -> CallPlan:
        tables = (self.levels, self.keep, self.weights, self.churn, self.signal)
        return CallPlan(self.calls, *(table.to(device) for table in tables))  # type: ignore[arg-type]


class SingleStepSampler(Sampler):
    """Makes the network calls that a method plans; there is one state per call.

    Args:
        num_steps: K, the number of times visited.
    """

    uses_variance = False

    @abstractmethod
    def calls(self, schedule: NoiseSchedule, levels: NoiseLevels) -> list[Call]:
        """All network calls from ``levels[0]``, which has some signal left, down to `last_call`."""

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> CallPlan:
        if len(levels) > 1 and not bool(levels[0].alpha > 0):
            return CallPlan.of([first_call(levels[0], levels[1]), *self.calls(schedule, levels[1:])])
        return CallPlan.of(self.calls(schedule, levels))

    def step(self, model: Model, plan: CallPlan, state: State) -> State:
        i, call = state.i, plan.calls[state.i]
        x = state.x
        start, *predictions = state.memory or (x,)
        if call.churn:
            x = start = per_sample(plan.churn[i, 0], x) * x + per_sample(plan.churn[i, 1], x) * model.noise.draw()
        prediction = model.predict(x, plan.levels[i])
        if not call.weights:
            return State(i + 1, prediction.x0, prediction)
        predictions.append(prediction.eps)
        x = per_sample(plan.keep[i], x) * start
        if call.signal is not None:
            x += per_sample(plan.signal[i], x) * prediction.x0
        for j, eps in enumerate(predictions):
            x += per_sample(plan.weights[i, j], eps) * eps
        return State(i + 1, x, prediction, () if call.ends else (start, *predictions))


def _table(rows: list[tuple[Tensor, ...]]) -> Tensor:
    """Stack rows of up to three numbers, padded with zeros, into one float64 table ``[len(rows), 3]``."""
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([*row, *[zero] * (3 - len(row))]) for row in rows])
