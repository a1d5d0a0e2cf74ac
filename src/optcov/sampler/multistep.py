r"""Multistep solvers: a step from ``t`` to ``s`` makes one network call and reuses data predictions of earlier steps.

In ``lambda = log(alpha / sigma)``, with ``h = lambda_s - lambda_t``, the probability-flow ODE (H = h) and the reverse
SDE (H = 2 h, exact noise) have the solution

    x_s = sigma_s / sigma_t e^{h - H} x_t + alpha_s int_0^1 H e^{-(1 - u) H} m(lambda_t + u h) du + noise
    noise ~ N(0, sigma_s^2 (1 - e^{-2 (H - h)}) I)

(DPM-Solver++, arXiv:2211.01095, Prop. 4.1 and Sec. 5).  A polynomial through predictions ``m_j`` at ``u_j`` turns the
integral into ``sum_j w_j m_j``.  The w_j solve ``sum_j w_j u_j^k = M_k`` with the moments

    M_0 = 1 - e^{-H},   M_k = int_0^1 u^k H e^{-(1 - u) H} du = 1 - k M_{k-1} / H

With two predictions the published methods replace M_1 by ``M_0 / 2``, which has the same order of accuracy.  The step
to ``sigma_0 = 0``, where H is infinite, has order 1 and returns m.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.sampler.base import Model, Sampler, State, order_within
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample


@dataclass(frozen=True)
class LinearPlan:
    """Steps ``x_s = keep x_t + sum_j weights_j m_j + noise z``, in the order in which they are taken; float64.

    Args:
        levels: the level at the start of each step, ``[K]``.
        keep, noise: ``[K]``.
        weights: ``[K, order]``, newest prediction first.
        correction: ``[K, order + 2]``, or None for no correction.  Before every step except the first, ``x_t`` becomes
            ``c_0 x + sum_j c_{j+1} m_j``, where x is the start of the previous step and m_0 the newest prediction.
    """

    levels: NoiseLevels
    keep: Tensor
    weights: Tensor
    noise: Tensor
    correction: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels)

    def to(self, device: torch.device) -> LinearPlan:
        """The same plan on another device."""
        correction = None if self.correction is None else self.correction.to(device)
        return LinearPlan(
            self.levels.to(device), self.keep.to(device), self.weights.to(device), self.noise.to(device), correction
        )


class LinearSampler(Sampler):
    """Runs steps that are linear in x and in the data predictions of the last steps.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        order: how many predictions a step uses: 1, 2 or 3; the first steps have fewer, and the last steps use fewer.
        stochastic: whether steps add noise.
        clip_x0: clamp the predicted x_0 to the data's range.
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    uses_variance = False

    def __init__(self, num_steps: int, order: int, stochastic: bool, clip_x0: bool) -> None:
        super().__init__(num_steps)
        self.order, self.stochastic, self.clip_x0 = order_within(order, num_steps), stochastic, clip_x0

    @abstractmethod
    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        """Compute the coefficients of the steps from each level to the next, and from the last level to 0."""

    def step(self, model: Model, plan: LinearPlan, state: State) -> State:
        i, x = state.i, state.x
        prediction = model.predict(x, plan.levels[i])
        x0 = model.denoiser.data_range.clip(prediction.x0) if self.clip_x0 else prediction.x0
        start, *past = state.memory or (x,)
        history = [x0, *past][: self.order + 1]
        if i == len(plan) - 1:
            return State(i + 1, x0, prediction)
        if plan.correction is not None and i > 0:
            x = per_sample(plan.correction[i, 0], x) * start
            for j, m in enumerate(history):
                x += per_sample(plan.correction[i, j + 1], m) * m
        start = x
        x = per_sample(plan.keep[i], x) * x
        for j, m in enumerate(history[: self.order]):
            x += per_sample(plan.weights[i, j], m) * m
        if self.stochastic:
            x += per_sample(plan.noise[i], x) * model.noise.draw()
        return State(i + 1, x, prediction, (start, *history))


class AdamsSampler(LinearSampler):
    """The exponential multistep methods described in this module's docstring; arguments as in `LinearSampler`.

    Step i of K has order ``min(order, i, K + 1 - i)``, i = 1..K (DPM-Solver++'s ``lower_order_final``).
    """

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        count = len(levels)
        lam, alpha, sigma = half_log_snr(levels), levels.alpha, levels.sigma
        keep, noise, weights = lam.new_zeros(count), lam.new_zeros(count), lam.new_zeros(count, self.order)
        for i in range(count - 1):
            order = min(self.order, i + 1, count - i)
            h = lam[i + 1] - lam[i]
            added = h if self.stochastic else torch.zeros_like(h)  # H - h
            keep[i] = sigma[i + 1] / sigma[i] * torch.exp(-added)
            noise[i] = sigma[i + 1] * (-torch.expm1(-2 * added)).sqrt()
            nodes = (lam[i + 1 - order : i + 1].flip(0) - lam[i]) / h
            weights[i, :order] = alpha[i + 1] * adams_weights(nodes, h + added)
        return LinearPlan(levels, keep, weights, noise)


def half_log_snr(levels: NoiseLevels) -> Tensor:
    """``lambda = log(alpha / sigma)``; -inf becomes -40, which gives the same weights up to rounding."""
    return (levels.log_snr / 2).clamp(min=-40.0)


def adams_weights(nodes: Tensor, H: Tensor) -> Tensor:
    """The weights ``w_j`` in this module's docstring.

    Args:
        nodes: the ``u_j`` at which predictions are known; float64 ``[n]``, distinct.
        H: 0-dimensional, positive.
    Returns:
        float64 ``[n]``.
    """
    moments = adams_moments(len(nodes), H)
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    powers = nodes[None] ** torch.arange(len(nodes), dtype=torch.float64)[:, None]
    weights: Tensor = torch.linalg.solve(powers, torch.stack(moments))
    return weights


def adams_moments(count: int, H: Tensor) -> list[Tensor]:
    """``M_0 .. M_{count - 1}`` in this module's docstring, by its recursion in the direction in which errors shrink.

    Args:
        count: at most 4.
        H: 0-dimensional, positive.
    """
    moments = [-torch.expm1(-H)]
    if H >= 1:
        for k in range(1, count):
            moments.append(1 - k * moments[-1] / H)
        return moments
    # upwards, 1 - k M / H cancels; downwards, an error shrinks by H / k, so that the starting value does not matter
    falling = [H / (count + 21)]
    for k in range(count + 20, 1, -1):
        falling.append(H * (1 - falling[-1]) / k)
    return (moments + falling[::-1])[:count]
