r"""Solvers that remember: a step from ``t`` to ``s`` uses the data predictions of the last steps, one new call each.

In ``lambda = log(alpha / sigma)``, with ``h = lambda_s - lambda_t``, the probability-flow ODE (H = h) and the reverse
SDE (H = 2 h, exact noise) have the solution

    x_s = sigma_s / sigma_t e^{h - H} x_t + alpha_s int_0^1 H e^{-(1 - u) H} m(lambda_t + u h) du + noise
    noise ~ N(0, sigma_s^2 (1 - e^{-2 (H - h)}) I)

(DPM-Solver++, arXiv:2211.01095, Prop. 4.1 and Sec. 5).  A polynomial through predictions ``m_j`` at ``u_j`` turns the
integral into ``sum_j w_j m_j``, where the w_j solve ``sum_j w_j u_j^k = M_k``, the moments

    M_0 = 1 - e^{-H},   M_k = int_0^1 u^k H e^{-(1 - u) H} du = 1 - k M_{k-1} / H

With two predictions the published methods take ``M_0 / 2`` for M_1, which is of the same order.  The step to
``sigma_0 = 0``, where H is infinite, has order 1 and returns m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.chain import chain
from optcov.denoiser import Denoiser
from optcov.sampler.base import Sampler, order_within
from optcov.sampler.noise import NoiseStream
from optcov.schedule.base import NoiseSchedule
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class LinearSteps:
    """Steps ``x_s = keep x_t + sum_j weights_j m_j + noise z``, in the order in which they are taken; float64.

    Args:
        keep, noise: ``[K]``.
        weights: ``[K, order]``, of the newest prediction first.
        correction: ``[K, order + 2]``, or None: before the step, but for the first, ``x_t`` becomes ``c_0 x + sum_j
            c_{j+1} m_j`` with x the start of the step before and m_0 the prediction just made.
    """

    keep: Tensor
    weights: Tensor
    noise: Tensor
    correction: Tensor | None = None

    def to(self, device: torch.device) -> LinearSteps:
        correction = None if self.correction is None else self.correction.to(device)
        return LinearSteps(self.keep.to(device), self.weights.to(device), self.noise.to(device), correction)


class LinearSampler(Sampler):
    """Runs steps that are linear in x and the data predictions of the last steps.

    Args:
        num_steps: K, one network call each.
        order: how many predictions a step uses: 1, 2 or 3; fewer while there are fewer, and towards the end.
        stochastic: whether its steps add noise.
        clip_x0: clamp the predicted x_0 to [-1, 1].
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    uses_variance = False

    def __init__(self, num_steps: int, order: int, stochastic: bool, clip_x0: bool) -> None:
        super().__init__(num_steps)
        self.order, self.stochastic, self.clip_x0 = order_within(order, num_steps), stochastic, clip_x0

    def steps(self, schedule: NoiseSchedule, times: Tensor) -> LinearSteps:
        """Coefficients of the steps from ``times`` (descending, ``[K]``, on the CPU) to the next, and to 0 at last."""
        raise NotImplementedError(f"{type(self).__name__} plans no steps")

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, noise: NoiseStream) -> Tensor:
        x = start = noise.draw()
        descending = times.cpu().flip(0)
        steps = self.steps(denoiser.schedule, descending).to(x.device)
        nodes = chain(descending.to(x.device))
        history: list[Tensor] = []
        for i, t in enumerate(nodes):
            x0 = denoiser(x, t).x0
            history = [x0.clamp(-1, 1) if self.clip_x0 else x0, *history][: self.order + 1]
            if i == len(nodes) - 1:
                return history[0]
            if steps.correction is not None and i > 0:
                x = per_sample(steps.correction[i, 0], x) * start
                for j, m in enumerate(history):
                    x += per_sample(steps.correction[i, j + 1], m) * m
            start = x
            x = per_sample(steps.keep[i], x) * x
            for j, m in enumerate(history[: self.order]):
                x += per_sample(steps.weights[i, j], m) * m
            if self.stochastic:
                x += per_sample(steps.noise[i], x) * noise.draw()
        raise ValueError("times is empty: give at least one")


class AdamsSampler(LinearSampler):
    """The exponential multistep methods of the module's formula; arguments as in :class:`LinearSampler`.

    The i-th of K steps has order ``min(order, i, K + 1 - i)`` (DPM-Solver++'s ``lower_order_final``).
    """

    def steps(self, schedule: NoiseSchedule, times: Tensor) -> LinearSteps:
        count = len(times)
        lam, alpha, sigma = schedule.log_snr(times) / 2, schedule.alpha(times), schedule.sigma(times)
        keep, noise, weights = times.new_zeros(count), times.new_zeros(count), times.new_zeros(count, self.order)
        for i in range(count - 1):
            order = min(self.order, i + 1, count - i)
            h = lam[i + 1] - lam[i]
            added = h if self.stochastic else torch.zeros_like(h)  # H - h
            keep[i] = sigma[i + 1] / sigma[i] * torch.exp(-added)
            noise[i] = sigma[i + 1] * (-torch.expm1(-2 * added)).sqrt()
            nodes = (lam[i + 1 - order : i + 1].flip(0) - lam[i]) / h
            weights[i, :order] = alpha[i + 1] * adams_weights(nodes, h + added)
        return LinearSteps(keep, weights, noise)


def adams_weights(nodes: Tensor, H: Tensor) -> Tensor:
    """The weights ``w_j`` of the module's formula.

    Args:
        nodes: ``u_j``, where predictions are known; float64 ``[n]``, distinct.
        H: 0-dimensional, positive.
    Returns:
        float64 ``[n]``.
    """
    moments = [-torch.expm1(-H)]
    for k in range(1, len(nodes)):
        moments.append(1 - k * moments[-1] / H)
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    powers = nodes[None] ** torch.arange(len(nodes), dtype=torch.float64)[:, None]
    weights: Tensor = torch.linalg.solve(powers, torch.stack(moments))
    return weights
