"""UniPC: DPM-Solver++'s multistep predictor, and a corrector that costs no call.

The prediction made at the end of a step joins those before it, and the step is taken again with one order more.
Source: UniPC (arXiv:2302.04867), Algorithms 5 and 6, data prediction, ``B(h) = e^h - 1`` ("bh2").
"""

from __future__ import annotations

from torch import Tensor

from optcov.sampler.multistep import AdamsSampler, LinearSteps, adams_weights
from optcov.schedule.base import NoiseSchedule


class UniPCSampler(AdamsSampler):
    """Predictor and corrector of the probability-flow ODE.

    Args:
        num_steps: K, one network call each.
        order: of the predictor: 1, 2 or 3.
        clip_x0: clamp the predicted x_0 to [-1, 1].
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    def __init__(self, num_steps: int = 50, order: int = 2, clip_x0: bool = False) -> None:
        super().__init__(num_steps, order, False, clip_x0)

    def steps(self, schedule: NoiseSchedule, times: Tensor) -> LinearSteps:
        predictor = super().steps(schedule, times)
        lam, alpha = schedule.log_snr(times) / 2, schedule.alpha(times)
        correction = times.new_zeros(len(times), self.order + 2)
        for i in range(1, len(times)):  # the step from times[i - 1] to times[i], again
            order = min(self.order, i, len(times) + 1 - i)
            h = lam[i] - lam[i - 1]
            nodes = (lam[i - order : i + 1].flip(0) - lam[i - 1]) / h
            weights = adams_weights(nodes, h)
            correction[i, 0] = predictor.keep[i - 1]
            correction[i, 1 : order + 2] = alpha[i] * weights
        return LinearSteps(predictor.keep, predictor.weights, predictor.noise, correction)
