r"""Predictor-corrector sampling: a step of the reverse kernel, then Langevin steps at the new time.

    x <- x + epsilon g + sqrt(2 epsilon) z,    g = grad log q_s(x) = -e / sigma_s
    epsilon = 2 alpha_{s|r}^2 (snr ||z|| / ||g||)^2,    r the next time below s

Source: Score SDEs (arXiv:2011.13456), Algorithms 3 and 5.  Their 1 - beta_i is alpha_{s|r}^2 at stride 1, and 1 on a
variance-exploding path (Algorithm 4).  Norms are computed per sample rather than over the batch, so that a sample does
not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optcov.ranges import Count, NonNegative, Positive, Steps
from optcov.sampler.ancestral import DDPMSampler, KernelPlan
from optcov.sampler.base import Model, Sampler, State
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class CorrectedPlan:
    """The predictor's steps, and alpha_{s|r}^2 at the end of every step except the last, ``[K - 1]``."""

    predictor: KernelPlan
    kept: Tensor

    def __len__(self) -> int:
        return len(self.predictor)

    def to(self, device: torch.device) -> CorrectedPlan:
        return CorrectedPlan(self.predictor.to(device), self.kept.to(device))


class PredictorCorrectorSampler(Sampler):
    """Ancestral steps with any ``var``, each except the last followed by annealed Langevin dynamics.

    Args:
        num_steps: K, the number of ancestral steps.
        snr: signal-to-noise ratio of a Langevin step, positive; 0.16 in the paper.
        corrector_steps: number of Langevin steps after each ancestral step; each makes one network call, and 0 gives
            plain DDPM.
        clip_x0, cut: as in `DDPMSampler`.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_steps: Steps = 50,
        snr: Positive = 0.16,
        corrector_steps: Count = 1,
        clip_x0: bool = True,
        cut: NonNegative | None = 2.0,
    ) -> None:
        super().__init__(num_steps)
        if not 0 < snr < float("inf"):
            raise ValueError(f"sampler.snr must be positive (got {snr}): give a signal-to-noise ratio such as 0.16")
        if corrector_steps < 0:
            raise ValueError(f"sampler.corrector_steps must not be negative (got {corrector_steps}): give 0, 1 or more")
        self.predictor = DDPMSampler(num_steps, clip_x0, cut)
        self.snr, self.corrector_steps = snr, corrector_steps

    def check(self, strategy: VarianceStrategy, schedule: NoiseSchedule) -> None:
        self.predictor.check(strategy, schedule)

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> CorrectedPlan:
        alpha = torch.cat([levels.alpha[1:], levels.alpha.new_ones(1)])
        return CorrectedPlan(self.predictor.plan(schedule, levels), (alpha[:-1] / alpha[1:]) ** 2)

    def step(self, model: Model, plan: CorrectedPlan, state: State) -> State:
        after = self.predictor.step(model, plan.predictor, state)
        if after.i == len(plan):
            return after
        x, level = after.x, plan.predictor.levels[after.i]
        for _ in range(self.corrector_steps):
            score = -model.predict(x, level).eps / per_sample(level.sigma, x)
            z = model.noise.draw()
            length = score.flatten(1).norm(dim=1).double()
            size = 2 * plan.kept[state.i] * (self.snr * z.flatten(1).norm(dim=1).double() / length) ** 2
            size = torch.where(length > 0, size, 0.0)  # take no step where an untrained network predicts 0
            x = x + per_sample(size, x) * score + per_sample((2 * size).sqrt(), x) * z
        return replace(after, x=x)
