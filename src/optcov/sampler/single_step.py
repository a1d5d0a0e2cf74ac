r"""Solvers that forget: each step from ``t`` to ``s`` uses predictions of its own alone, as Runge-Kutta methods do.

The probability-flow ODE is ``d(x / alpha) / d(sigma / alpha) = e(x, t)`` (Score SDEs, arXiv:2011.13456, Eq. 13, in the
coordinates of EDM and DDIM), so that every explicit method of it sets, after the j-th network call of a step,

    x = keep x_t + sum_k weights_k e_k,      k = 1..j

to reach the time of the next call, and at last s.  What remains at the smallest time tau_1 is taken off at once:
the step to ``sigma_0 = 0`` returns ``E[x_0 | x_{tau_1}]``, the Euler step there, finite where log-SNR is not.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.chain import chain
from optcov.denoiser import Denoiser
from optcov.sampler.base import Sampler
from optcov.sampler.noise import NoiseStream
from optcov.schedule.base import NoiseSchedule
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Call:
    """One network call, and the combination formed after it; float64, 0-dimensional.

    Args:
        time: at which the network is called.
        keep: factor of x at the start of the step.
        weights: of the step's predictions of eps so far, first to last.
        ends: whether the combination is x_s, the end of the step.
        churn: ``(scale, amplitude)`` of ``x <- scale x + amplitude z`` before a step, if noise is added.
    """

    time: Tensor
    keep: Tensor
    weights: tuple[Tensor, ...]
    ends: bool
    churn: tuple[Tensor, Tensor] | None = None


def last_call(time: Tensor, churn: tuple[Tensor, Tensor] | None = None) -> Call:
    """The call of the step to 0, after which ``E[x_0 | x_t]`` is the answer."""
    return Call(time, time.new_zeros(()), (), True, churn)


class SingleStepSampler(Sampler):
    """Runs the calls that a method plans.

    Args:
        num_steps: K, the number of times visited.
    """

    uses_variance = False

    @abstractmethod
    def calls(self, schedule: NoiseSchedule, times: Tensor) -> list[Call]:
        """All network calls from ``times[-1]`` down, the last of them :func:`last_call`; times as in :meth:`sample`."""

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, noise: NoiseStream) -> Tensor:
        x = start = noise.draw()
        calls = self.calls(denoiser.schedule, times.cpu())
        nodes = chain(torch.stack([call.time for call in calls]).to(x.device))
        keep = torch.stack([call.keep for call in calls]).to(x.device)
        weights = _table([call.weights for call in calls]).to(x.device)
        churn = _table([call.churn or () for call in calls]).to(x.device)
        predictions: list[Tensor] = []
        for i, call in enumerate(calls):
            if call.churn:
                x = start = per_sample(churn[i, 0], x) * x + per_sample(churn[i, 1], x) * noise.draw()
            prediction = denoiser(x, nodes[i])
            if not call.weights:
                x_0: Tensor = prediction.x0
                return x_0
            predictions.append(prediction.eps)
            x = per_sample(keep[i], x) * start
            for j, eps in enumerate(predictions):
                x += per_sample(weights[i, j], eps) * eps
            if call.ends:
                start, predictions = x, []
        raise ValueError("times is empty: give at least one")


def _table(rows: list[tuple[Tensor, ...]]) -> Tensor:
    """Rows of up to three numbers, filled up with zeros, as one float64 table ``[len(rows), 3]``."""
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([*row, *[zero] * (3 - len(row))]) for row in rows])
