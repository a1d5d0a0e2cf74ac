r"""DPM-Solver, singlestep, of orders 1 to 3: exponential integrators of the noise prediction in ``log(alpha / sigma)``.

With ``h = lambda_s - lambda_t`` and ``lambda = log(alpha / sigma)``, the exact solution is

    x_s = alpha_s / alpha_t x_t - alpha_s int_{lambda_t}^{lambda_s} exp(-lambda) e dlambda

Approximating e by a polynomial in lambda turns it into a linear combination of predictions at intermediate times.

Source: DPM-Solver (arXiv:2206.00927), Prop. 3.1, Eq. 3.7 and Algorithms 1 and 2.  Network calls are divided among steps
of orders 3, 2 and 1 as in DPM-Solver-fast (Sec. 3.4).
"""

from __future__ import annotations

import torch

from optcov.ranges import Order, Steps
from optcov.sampler.base import order_within
from optcov.sampler.single_step import Call, SingleStepSampler, last_call
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels


class DPMSolverSampler(SingleStepSampler):
    """Makes K network calls: ``K - 1`` in steps from the largest time to tau_1, and one for the step to 0.

    A step of order p makes p calls, and so spans p intervals of the trajectory.  Its inner calls are spaced evenly in
    lambda and are not at times of the trajectory.

    Args:
        num_steps: K, the number of network calls.
        order: 1 (which is DDIM), 2 or 3; at most K.
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    def __init__(self, num_steps: Steps = 50, order: Order = 3) -> None:
        super().__init__(num_steps)
        self.order = order_within(order, num_steps)

    def orders(self, calls: int) -> list[int]:
        """Divide ``calls`` network calls among steps, and return the order of each: the highest orders come first."""
        whole, rest = divmod(calls, self.order)
        if self.order == 3 and rest == 0 and whole > 0:
            return [3] * (whole - 1) + [2, 1]  # as published: the last step has order 1, unless 2 calls remain
        return [self.order] * whole + ([rest] if rest else [])

    def calls(self, schedule: NoiseSchedule, levels: NoiseLevels) -> list[Call]:
        calls, node = [], 0
        for order in self.orders(len(levels) - 1):
            calls += _step(schedule, levels[node], levels[node + order], order)
            node += order
        return [*calls, last_call(levels[-1])]


def _step(schedule: NoiseSchedule, t: NoiseLevels, s: NoiseLevels, order: int) -> list[Call]:
    """The network calls of a step from ``t`` to ``s``, at fractions 0, 1/order, ... of the way in lambda."""
    h = (s.log_snr - t.log_snr) / 2
    fractions = torch.arange(1, order, dtype=torch.float64) / order
    between = schedule.levels(schedule.time(t.log_snr + fractions * (s.log_snr - t.log_snr)))
    ends = NoiseLevels.cat([between, s])  # the level that the combination after each call reaches
    keep, sigma = ends.alpha / t.alpha, ends.sigma
    first = [-sigma[j] * torch.expm1(h * (j + 1) / order) for j in range(order)]  # for a constant e, Eq. 3.7
    nodes = NoiseLevels.cat([t, between])
    if order == 1:
        return [Call(t, keep[0], (first[0],), True)]
    if order == 2:  # Algorithm 1, r_1 = 1/2: (exp(h) - 1) / (2 r_1) of the slope: the midpoint rule
        weights = [(first[0],), (0 * first[1], first[1])]
    else:  # Algorithm 2, r_1 = 1/3, r_2 = 2/3
        slope = [-sigma[j] * (torch.expm1(h * (j + 1) / 3) / (h * (j + 1) / 3) - 1) for j in (1, 2)]
        inner, outer = 2 * slope[0], 1.5 * slope[1]  # r_2 / r_1 and 1 / r_2
        weights = [(first[0],), (first[1] - inner, inner), (first[2] - outer, 0 * outer, outer)]
    return [Call(nodes[j], keep[j], tuple(weights[j]), j == order - 1) for j in range(order)]
