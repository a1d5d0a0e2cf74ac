"""Noise that is known beforehand, and what a sampler that is affine in it makes of it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.sampler import Sampler
from optcov.schedule import FlowSchedule, LinearSchedule, VESchedule, VPSDESchedule
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.fixed import BetaTilde

PATHS = {
    "linear": LinearSchedule(1000),
    "vp_sde": VPSDESchedule(1000),
    "flow": FlowSchedule(1000),
    "ve": VESchedule(1000),
}


class Scripted:
    """Known draws ``[B, d]``, one after another, in place of random ones."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.script = iter(draws)

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return next(self.script)


class Exact(Closed):
    """The diagonal of the oracle's exact ``Cov[x_0|x_t]``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        exact = denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]
        return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))


def white(draws: int, count: int, dim: int, seed: int = 0) -> Tensor:
    """``[draws, count, dim]`` in float64."""
    return torch.randn(draws, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(sampler: Sampler, denoiser: Denoiser, times: Tensor, draws: Tensor) -> Tensor:
    """A sampler's answer to known noise, with ``C = 0``."""
    return sampler.sample(denoiser, BetaTilde(denoiser), times, Scripted(draws))


def chain_moments(
    sampler: Sampler,
    strategy: VarianceStrategy,
    denoiser: Denoiser,
    times: Tensor,
    start: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Exact mean and variance of a sampler's answer on a line, read off its answers to probes.

    The sampler must be affine in what it starts from and in its draws.

    Args:
        start: mean and standard deviation of x at ``times[-1]``; None for the prior's.
    """
    count = len(times) + 2  # the start, one a step at most, and one that nothing may depend on
    probes = torch.cat([torch.zeros(1, count), torch.eye(count)]).T[..., None].double()  # [draw, probe, 1]
    given = None if start is None else start[0] + start[1] * probes[0]
    script = Scripted(probes if start is None else probes[1:])
    answer = sampler.sample(denoiser, strategy, times, script, start=given)[:, 0]
    gains = answer[1:] - answer[0]
    assert gains[-1] == 0, "the script is too short"
    return answer[0].item(), gains.square().sum().item()


def marginal(denoiser: Denoiser, t: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of ``q(x_t)``, of data on a line of one component."""
    level, data = denoiser.levels(t), denoiser.network.mixture
    variance = level.alpha**2 * data.covariance()[0, 0] + level.sigma**2
    return float(level.alpha * data.mean()[0]), float(variance.sqrt())
