"""Samplers that draw from the moment-matched reverse kernel: DDPM and DDIM, each with any covariance.

DDPM with C = 0 or sigma_t^2 I is Ho et al. (arXiv:2006.11239); DDIM is Song et al. (arXiv:2010.02502), Eq. 12; with a
fitted C they are Analytic-, NPR- and SN-DPM (arXiv:2201.06503, arXiv:2206.07309).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.chain import chain
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.sampler.base import Sampler
from optcov.sampler.noise import NoiseStream
from optcov.variance.base import VarianceStrategy


class DDIMSampler(Sampler):
    """Steps of the kernel at any eta; a clipped x_0 keeps the network's own noise estimate.

    Args:
        num_steps: K, the number of network calls.
        eta: 0 for DDIM's kernel, 1 for DDPM's.
        clip_x0: clamp the predicted x_0 to [-1, 1] before each step.
        cut: bound on the noise of the last stochastic step, in grey levels of 255, for fitted variances: at most
            ``(cut * 2/255 * sqrt(pi/2))^2`` (Analytic-DPM, Sec. 3.1 and Appendix H.1); None for no bound.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_steps: int = 50, eta: float = 0.0, clip_x0: bool = True, cut: float | None = 1.0) -> None:
        super().__init__(num_steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.eta = {eta} is not a share of DDPM's noise: give a number from 0 to 1")
        if cut is not None and cut < 0:
            raise ValueError(f"sampler.cut = {cut} is no number of grey levels: give 1, 2, or null for no cut")
        self.eta, self.clip_x0, self.cut = eta, clip_x0, cut

    def check(self, strategy: VarianceStrategy) -> None:
        strategy.check_step(self.eta)

    @property
    def max_last_variance(self) -> float:
        """The cut as a variance on the data's scale."""
        return math.inf if self.cut is None else (self.cut * 2 / 255) ** 2 * math.pi / 2

    def clip(self, x0: Tensor, eps: Tensor, x_t: Tensor, kernel: ReverseKernel) -> tuple[Tensor, Tensor]:
        """The x_0 and eps that enter the mean where x_0 is clipped."""
        return x0.clamp(-1, 1), eps

    def correct(
        self, denoiser: Denoiser, x_s: Tensor, step: int, times: Sequence[Tensor], noise: NoiseStream
    ) -> Tensor:
        """What is done to ``x_s`` at ``times[step - 1]``, once drawn: nothing, unless a sampler corrects."""
        return x_s

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, noise: NoiseStream) -> Tensor:
        x = noise.draw()
        steps = ReverseKernel.between(denoiser.schedule, torch.cat([times.new_zeros(1), times[:-1]]), times, self.eta)
        steps, nodes = steps.to(x.device), chain(times.to(x.device))
        for i in reversed(range(len(nodes))):
            t, kernel = nodes[i], steps[i]
            prediction = denoiser(x, t)
            x0, eps = prediction.x0, prediction.eps
            if self.clip_x0:
                x0, eps = self.clip(x0, eps, x, kernel)
            mean = kernel.mean(x0, eps)
            if i == 0:
                return mean
            covariance = strategy.transition(kernel, denoiser, prediction, x, t)
            if i == 1 and strategy.cut_last:
                covariance = covariance.clamp(0.0, self.max_last_variance)
            x = self.correct(denoiser, mean.add_(covariance.sqrt_mul(noise.draw())), i, nodes, noise)
        raise ValueError("times is empty: give at least one")


class DDPMSampler(DDIMSampler):
    """Steps of the kernel at eta = 1; with a clipped x_0 the mean is that of ``q(x_s | x_t, x_0)``.

    Args:
        num_steps, clip_x0, cut: as in :class:`DDIMSampler`.
    """

    def __init__(self, num_steps: int = 50, clip_x0: bool = True, cut: float | None = 2.0) -> None:
        super().__init__(num_steps, eta=1.0, clip_x0=clip_x0, cut=cut)

    def clip(self, x0: Tensor, eps: Tensor, x_t: Tensor, kernel: ReverseKernel) -> tuple[Tensor, Tensor]:
        x0 = x0.clamp(-1, 1)
        return x0, (x_t - per_sample(kernel.alpha_t, x_t) * x0) / per_sample(kernel.sigma_t, x_t)
