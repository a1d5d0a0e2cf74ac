"""The variational bound on -log p(x_0) for a chain of reverse steps, with any covariance, trajectory and stride.

    L = KL(q(x_K|x_0) || prior) + sum_i KL(q(x_{i-1}|x_i,x_0) || p(x_{i-1}|x_i)) - log p(x_0|x_1)

The sum runs over the nodes 1..K of the trajectory, at eta = 1.  The prior is the Gaussian from which sampling starts,
N(0, I) on variance-preserving paths.  Both Gaussians of a transition have mean ``(...) x_t + c x_0``, one with x_0 and
the other with its estimate m, so their means differ by ``c (x_0 - m)``.  One draw of x_t estimates each term.

Sources: DDPM (arXiv:2006.11239), Eq. 5; the decoder and its variance, Analytic-DPM (arXiv:2201.06503), Appendix H.2:
the Gaussian mass of each pixel's bin, of variance beta_tilde between the first two times of the full chain.

Continuous data have a density instead of masses: the last term is then ``-log N(x_0; m(x_1), r_1 I)`` with
``r_1 = sigma_1^2 / alpha_1^2``.  L is a bound on ``-log p(x_0)`` for any density of x_0 given x_1 (Jensen).  The best
Gaussian has the covariance of x_0 given x_1.  Where the data's density is smooth on the scale of sigma_1, this
covariance is ``r_1 I`` to first order, because the posterior is then proportional to the likelihood
``N(x_1; alpha_1 x_0, sigma_1^2 I)`` as a function of x_0.  The excess of the bound due to this choice vanishes with
sigma_1 and does not depend on the strategy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.covariance.base import Noise
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood.terms import LogMass, check_grey_levels, gaussian_kl, gaussian_kl_between, pixel_log_mass
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Noised:
    """Clean data and the network's prediction from a noisy version of them at one level; tensors ``[B, *event]``."""

    x_0: Tensor
    prediction: Prediction
    mean: Tensor  # the estimate of x_0 that the steps use, clipped if the bound has `clip_x0`


@dataclass(frozen=True)
class Bound(ABC):
    """The terms of a bound on ``-log p(x_0)``, in nats per sample and float64.

    Args:
        denoiser, strategy: a mean network and its (fitted) variance, in eval mode, on the same device.
        clip_x0: clamp the predicted x_0 to the data's range in each step, as published results do.
    """

    denoiser: Denoiser
    strategy: VarianceStrategy
    clip_x0: bool = True

    def __post_init__(self) -> None:
        self.strategy.check_step(1.0)

    @abstractmethod
    def decoder(self, noised: Noised) -> Tensor:
        """``-log p(x_0 | x_t)`` of the step to 0, ``[B]``."""

    @torch.no_grad()
    def terms(
        self,
        x_0: Tensor,
        times: Tensor,
        noise: Noise,
        advance: Callable[[], object] = lambda: None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Estimate each term once for each sample; the bound is the sum over the first dimension.

        Args:
            x_0: data on the grey levels of the denoiser's range, ``[B, *event]``.
            times: ascending float64 ``[K]`` in (0, 1].
            noise: one stream per sample; each time draws from it once.
            advance: called after each time, for a progress bar.
            condition: class of each sample, int64 ``[B]``; only for class-conditional denoisers.
        Returns:
            ``[K + 1, B]``: the decoder, the transitions to ``times[0] .. times[K - 2]``, and the prior.
        """
        levels = self.denoiser.levels(times).to(x_0.device)
        rows = []
        for i, level in enumerate(levels):
            noised = self.observe(x_0, level, noise, condition)
            rows.append(self.decoder(noised) if i == 0 else self.transition(noised, levels[i - 1]))
            advance()
        return torch.stack([*rows, self.prior(x_0, levels[-1])])

    def observe(self, x_0: Tensor, level: NoiseLevels, noise: Noise, condition: Tensor | None = None) -> Noised:
        """Draw from ``q(x_t | x_0)`` and call the network, once for all terms that start at ``level``."""
        prediction = self.denoiser(self.denoiser.diffuse(x_0, noise.draw().to(x_0.dtype), level), level, condition)
        mean = self.denoiser.data_range.clip(prediction.x0) if self.clip_x0 else prediction.x0
        return Noised(x_0, prediction, mean)

    def transition(self, noised: Noised, s: NoiseLevels) -> Tensor:
        """``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, ``[B]``, for ``0 < s < t``."""
        kernel = ReverseKernel.from_levels(s, noised.prediction.level)
        covariance = self.strategy.transition(kernel, self.denoiser, noised.prediction)
        difference = per_sample(kernel.c, noised.x_0) * (noised.x_0 - noised.mean)
        return gaussian_kl_between(difference, kernel.lambda_sq, covariance)

    def prior(self, x_0: Tensor, level: NoiseLevels) -> Tensor:
        """``KL(q(x_t | x_0) || N(0, prior_std^2 I))``, ``[B]``; sampling starts from this prior."""
        zero = torch.zeros((), dtype=torch.float64, device=x_0.device)
        log_variance = 2 * self.denoiser.schedule.prior_std(level).log()
        return gaussian_kl(level.alpha * x_0.double(), 2 * level.sigma.log(), zero, log_variance)


@dataclass(frozen=True)
class VariationalBound(Bound):
    """The bound on the probability of data on grey levels.

    Args:
        denoiser, strategy, clip_x0: as in `Bound`.
        log_mass: the log mass of a pixel's bin.
    Raises:
        ValueError: if the schedule has a single step, so that the decoder's variance is undefined, or the data have no
            grey levels.
    """

    log_mass: LogMass = pixel_log_mass

    def __post_init__(self) -> None:
        super().__post_init__()
        check_grey_levels(self.denoiser.data_range)
        if self.denoiser.schedule.num_steps < 2:
            raise ValueError(
                "schedule.num_steps must be at least 2 for bits/dim (got 1): give 2 or more, because the decoder's "
                "variance is that of the step between the first two times"
            )

    def decoder(self, noised: Noised) -> Tensor:
        first, second = self.denoiser.levels(self.denoiser.schedule.grid(noised.x_0.device)[:2])
        log_variance = ReverseKernel.from_levels(first, second).lambda_sq.log()
        data_range = self.denoiser.data_range
        return -self.log_mass(noised.x_0.double(), noised.mean.double(), log_variance, data_range)


class DensityBound(Bound):
    """The bound on the density of continuous data, such as latents."""

    def decoder(self, noised: Noised) -> Tensor:
        log_variance = -noised.prediction.level.log_snr
        distance = (noised.x_0.double() - noised.mean.double()) ** 2 * (-log_variance).exp()
        return (distance + log_variance + math.log(2 * math.pi)).flatten(1).sum(1) / 2
