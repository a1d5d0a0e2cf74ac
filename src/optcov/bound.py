"""The variational bound on -log p(x_0) of a chain of reverse steps, for every covariance, trajectory and stride.

    L = KL(q(x_N|x_0) || N(0, I)) + sum_i KL(q(x_{i-1}|x_i,x_0) || p(x_{i-1}|x_i)) - log p(x_0|x_1)

over the nodes 1..K of the trajectory, with eta = 1.  Both Gaussians of a transition have mean ``(...) x_t + c x_0``,
with x_0 and with its estimate m, so that they are ``c (x_0 - m)`` apart.  Each term is estimated at one draw of x_t.

Sources: DDPM (arXiv:2006.11239), Eq. 5; the decoder and its variance, Analytic-DPM (arXiv:2201.06503), Appendix H.2:
the Gaussian mass of each pixel's bin, of variance beta_tilde between the first two times of the full chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.chain import chain
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood import LogMass, gaussian_kl, gaussian_kl_between, pixel_log_mass
from optcov.sampler.noise import NoiseStream
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Noised:
    """Data, their noisy form at one time, and what the network makes of it; tensors ``[B, *event]``."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    prediction: Prediction
    mean: Tensor  # of x_0, as it enters the steps


@dataclass(frozen=True)
class VariationalBound:
    """The terms of the bound, in nats per sample and float64.

    Args:
        denoiser, strategy: a mean network and its (fitted) variance, in eval mode, on one device.
        clip_x0: clamp the predicted x_0 to [-1, 1] in each step, as published results do.
        log_mass: the log mass of a pixel's bin.
    Raises:
        ValueError: if the schedule has one step only, which leaves the decoder no variance.
    """

    denoiser: Denoiser
    strategy: VarianceStrategy
    clip_x0: bool = True
    log_mass: LogMass = pixel_log_mass

    def __post_init__(self) -> None:
        self.strategy.check_step(1.0)
        if self.denoiser.schedule.num_steps < 2:
            raise ValueError("schedule.num_steps = 1 leaves the decoder no variance beta_tilde(1, 2): give at least 2")

    @torch.no_grad()
    def terms(
        self, x_0: Tensor, times: Tensor, noise: NoiseStream, advance: Callable[[], object] = lambda: None
    ) -> Tensor:
        """One estimate of each term for each sample; the bound is their sum over the first dimension.

        Args:
            x_0: 8-bit data on [-1, 1], ``[B, *event]``.
            times: ascending float64 ``[K]`` in (0, 1].
            noise: one stream per sample, drawn from once for each time.
            advance: called after each time, for a progress bar.
        Returns:
            ``[K + 1, B]``: the decoder, the transitions to ``times[0] .. times[K - 2]``, the prior.
        """
        nodes = chain(times.to(x_0.device))
        rows = []
        for i, t in enumerate(nodes):
            noised = self.observe(x_0, t, noise)
            rows.append(self.decoder(noised) if i == 0 else self.transition(noised, nodes[i - 1]))
            advance()
        return torch.stack([*rows, self.prior(x_0, nodes[-1])])

    def observe(self, x_0: Tensor, t: Tensor, noise: NoiseStream) -> Noised:
        """Draw ``q(x_t | x_0)`` and ask the network, once for all terms that start at ``t``."""
        x_t = self.denoiser.diffuse(x_0, noise.draw().to(x_0.dtype), t)
        prediction = self.denoiser(x_t, t)
        return Noised(x_0, x_t, t, prediction, prediction.x0.clamp(-1, 1) if self.clip_x0 else prediction.x0)

    def transition(self, noised: Noised, s: Tensor) -> Tensor:
        """``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, ``[B]``, for ``0 < s < t``."""
        kernel = ReverseKernel.between(self.denoiser.schedule, s, noised.t)
        covariance = self.strategy.transition(kernel, self.denoiser, noised.prediction, noised.x_t, noised.t)
        difference = per_sample(kernel.c, noised.x_0) * (noised.x_0 - noised.mean)
        return gaussian_kl_between(difference, kernel.lambda_sq, covariance)

    def decoder(self, noised: Noised) -> Tensor:
        """``-log p(x_0 | x_t)`` of the step to 0, ``[B]``."""
        first, second = self.denoiser.schedule.grid(noised.x_t.device)[:2]
        log_variance = ReverseKernel.between(self.denoiser.schedule, first, second).lambda_sq.log()
        return -self.log_mass(noised.x_0.double(), noised.mean.double(), log_variance)

    def prior(self, x_0: Tensor, t: Tensor) -> Tensor:
        """``KL(q(x_t | x_0) || N(0, I))``, ``[B]``."""
        schedule, x_0 = self.denoiser.schedule, x_0.double()
        zero = torch.zeros((), dtype=torch.float64, device=x_0.device)
        return gaussian_kl(schedule.alpha(t) * x_0, 2 * schedule.sigma(t).log(), zero, zero)
