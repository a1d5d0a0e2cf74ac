"""UniPC: DPM-Solver++'s multistep predictor with a corrector that needs no extra network call.

The corrector repeats each step with the prediction made at its end, which raises the order by one.

Source: UniPC (arXiv:2302.04867), Algorithms 5 and 6, data prediction, ``B(h) = e^h - 1`` ("bh2").
"""

from __future__ import annotations

from dataclasses import replace

from optcov.ranges import NonNegative, Order, Steps
from optcov.sampler.multistep import AdamsSampler, LinearPlan, adams_weights, half_log_snr
from optcov.sampler.share import NoiseChoice
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels


class UniPCSampler(AdamsSampler):
    """Predictor and corrector of the probability-flow ODE.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        order: the order of the predictor: 1, 2 or 3; at most K.
        clip_x0: clamp the predicted x_0 to the data's range.
        noise, cut: as in `MultistepSampler`; the corrector keeps the noise of the step that it repeats.
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    def __init__(
        self,
        num_steps: Steps = 50,
        order: Order = 2,
        clip_x0: bool = False,
        noise: NoiseChoice = "none",
        cut: NonNegative | None = 1.0,
    ) -> None:
        super().__init__(num_steps, order, False, clip_x0, noise, cut)

    def mean_plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        predictor = super().mean_plan(schedule, levels)
        lam = half_log_snr(levels)
        correction = lam.new_zeros(len(levels), self.order + 2)
        # repeats the step from levels[i - 1] to levels[i]; the last step returns m and needs no corrected x
        for i in range(1, len(levels) - 1):
            order = min(self.order, i)
            h = lam[i] - lam[i - 1]
            nodes = (lam[i - order : i + 1].flip(0) - lam[i - 1]) / h
            correction[i, 0] = predictor.keep[i - 1]
            correction[i, 1 : order + 2] = levels.alpha[i] * adams_weights(nodes, h)
        return replace(predictor, correction=correction)
