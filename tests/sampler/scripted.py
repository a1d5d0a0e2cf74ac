"""Noise that is known beforehand, and what a sampler that is affine in it makes of it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.sampler import NoiseStream, Sampler
from optcov.variance.fixed import BetaTilde


class Scripted(NoiseStream):
    """Known draws ``[B, d]``, one after another, in place of random ones."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.script = iter(draws)

    def draw(self) -> Tensor:
        return next(self.script)


def white(draws: int, count: int, dim: int, seed: int = 0) -> Tensor:
    """``[draws, count, dim]`` in float64."""
    return torch.randn(draws, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(sampler: Sampler, denoiser: Denoiser, times: Tensor, draws: Tensor) -> Tensor:
    """A sampler's answer to known noise, with ``C = 0``."""
    return sampler.sample(denoiser, BetaTilde(denoiser), times, Scripted(draws))


def chain_moments(sampler: Sampler, denoiser: Denoiser, times: Tensor) -> tuple[float, float]:
    """Exact mean and variance of a sampler's answer where it is affine in its draws, read off its answers to probes."""
    count = len(times) + 2
    probes = torch.cat([torch.zeros(1, count), torch.eye(count)]).T[..., None].double()  # [draw, probe, 1]
    answer = solve(sampler, denoiser, times, probes)[:, 0]
    return answer[0].item(), (answer[1:] - answer[0]).square().sum().item()
