"""Samplers that draw from the moment-matched reverse kernel: DDPM and DDIM, each with any covariance.

Sources: DDPM with C = 0 or sigma_t^2 I, Ho et al. (arXiv:2006.11239); DDIM, Song et al. (arXiv:2010.02502), Eq. 12;
with a fitted C, Analytic-DPM, NPR-DPM and SN-DPM (arXiv:2201.06503, arXiv:2206.07309).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.data_range import DataRange
from optcov.denoiser import Prediction
from optcov.kernel import ReverseKernel
from optcov.ranges import NonNegative, Share, Steps
from optcov.sampler.base import Model, Sampler, State, last_variance_bound
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class KernelPlan:
    """The noise levels of a chain, ``[K]`` in the order of the steps, and the kernel of each step."""

    levels: NoiseLevels
    kernels: ReverseKernel

    def __len__(self) -> int:
        return len(self.levels)

    def to(self, device: torch.device) -> KernelPlan:
        return KernelPlan(self.levels.to(device), self.kernels.to(device))


class KernelSampler(Sampler):
    """Draws each step from the reverse kernel at a fixed eta.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        eta: 0 for DDIM's kernel, 1 for DDPM's.
        clip_x0: clamp the predicted x_0 to the data's range before each step.
        cut: bound on the noise of the last stochastic step, in grey levels.  It limits fitted variances to
            ``(cut * grey_level * sqrt(pi/2))^2`` (Analytic-DPM, Sec. 3.1 and Appendix H.1), where grey levels lie 2/255
            apart on [-1, 1].  There is no bound if it is None or the data have no grey levels.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_steps: int, eta: float, clip_x0: bool, cut: float | None) -> None:
        super().__init__(num_steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.eta must lie between 0 and 1 (got {eta}): give 0 for DDIM, 1 for DDPM")
        if cut is not None and not 0 <= cut < math.inf:
            raise ValueError(f"sampler.cut must not be negative (got {cut}): give 1, 2, or null for no cut")
        self.eta, self.clip_x0, self.cut = eta, clip_x0, cut

    @abstractmethod
    def clipped_eps(self, x0: Tensor, prediction: Prediction) -> Tensor:
        """The eps to use in the mean together with a clipped ``x0``, ``[B, *event]``."""

    def check(self, strategy: VarianceStrategy, schedule: NoiseSchedule) -> None:
        super().check(strategy, schedule)
        strategy.check_step(self.eta)

    def max_last_variance(self, data_range: DataRange) -> float | None:
        """The largest variance that ``cut`` allows in the last stochastic step; None for no bound."""
        return last_variance_bound(self.cut, data_range)

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> KernelPlan:
        data = schedule.levels(levels.t.new_zeros(1))
        return KernelPlan(levels, ReverseKernel.from_levels(NoiseLevels.cat([levels[1:], data]), levels, self.eta))

    def step(self, model: Model, plan: KernelPlan, state: State) -> State:
        kernel, left = plan.kernels[state.i], len(plan) - 1 - state.i
        data_range = model.denoiser.data_range
        prediction = model.predict(state.x, plan.levels[state.i])
        x0, eps = prediction.x0, prediction.eps
        if self.clip_x0 and data_range.is_bounded:
            x0 = data_range.clip(x0)
            eps = self.clipped_eps(x0, prediction)
        x = kernel.mean(x0, eps)
        if left > 0:
            covariance = model.transition(kernel, prediction)
            if left == 1 and model.strategy.cut_last:
                covariance = covariance.bounded(self.max_last_variance(data_range))
            x = x.add_(covariance.draw(model.noise))
        return State(state.i + 1, x, prediction)


class DDIMSampler(KernelSampler):
    """DDIM at any eta; if x_0 is clipped, the mean still uses the network's own noise estimate.

    Args:
        num_steps, eta, clip_x0, cut: as in `KernelSampler`.
    """

    def __init__(
        self, num_steps: Steps = 50, eta: Share = 0.0, clip_x0: bool = True, cut: NonNegative | None = 1.0
    ) -> None:
        super().__init__(num_steps, eta, clip_x0, cut)

    def clipped_eps(self, x0: Tensor, prediction: Prediction) -> Tensor:
        return prediction.eps


class DDPMSampler(KernelSampler):
    """DDPM, eta = 1; if x_0 is clipped, the mean is that of ``q(x_s | x_t, x_0)``.

    Args:
        num_steps, clip_x0, cut: as in `KernelSampler`.
    """

    def __init__(self, num_steps: Steps = 50, clip_x0: bool = True, cut: NonNegative | None = 2.0) -> None:
        super().__init__(num_steps, 1.0, clip_x0, cut)

    def clipped_eps(self, x0: Tensor, prediction: Prediction) -> Tensor:
        level, x_t = prediction.level, prediction.x_t
        return (x_t - per_sample(level.alpha, x_t) * x0) / per_sample(level.sigma, x_t)
