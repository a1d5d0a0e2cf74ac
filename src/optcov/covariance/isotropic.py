"""One variance for all coordinates."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, clamped
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.schedule.levels import per_sample


class IsotropicCovariance(Covariance):
    """``C = variance * I``.

    Args:
        variance: ``[B]``; `bounded` raises an estimate that fell below 0 to 0.
        event_shape: shape of one sample, with d = prod(event_shape) dimensions.
    """

    def __init__(self, variance: Tensor, event_shape: torch.Size | tuple[int, ...]) -> None:
        self.variance = variance
        self.event_shape = tuple(event_shape)

    is_diagonal = True

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.variance), *self.event_shape))

    def affine(self, scale: Tensor, shift: Tensor) -> IsotropicCovariance:
        v = self.variance
        return IsotropicCovariance(scale.to(v.dtype) * v + shift.to(v.dtype), self.event_shape)

    def bounded(self, high: float | Tensor | None) -> IsotropicCovariance:
        return IsotropicCovariance(clamped(self.variance, high), self.event_shape)

    def draw(self, noise: Noise) -> Tensor:
        z = noise.draw()
        return per_sample(self.variance.sqrt(), z) * z

    def diagonal(self) -> Tensor:
        ones = self.variance.new_ones(len(self.variance), *self.event_shape)
        return per_sample(self.variance, ones) * ones

    def matvec(self, v: Tensor) -> Tensor:
        return per_sample(self.variance, v) * v

    def solve(self, v: Tensor) -> Tensor:
        return v / per_sample(self.variance, v)

    def logdet(self) -> Tensor:
        return prod(self.event_shape) * self.variance.log()

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        if isinstance(other, IsotropicCovariance):
            return IsotropicCovariance(torch.lerp(self.variance, other.variance, weight), self.event_shape)
        return DiagonalCovariance(self.diagonal()).lerp(other, weight)

    def congruence(self, scale: Tensor) -> DiagonalCovariance:
        return DiagonalCovariance(self.diagonal()).congruence(scale)

    def inv_quad(self, v: Tensor) -> Tensor:
        return (v**2).flatten(1).sum(1) / self.variance

    def trace(self) -> Tensor:
        return prod(self.event_shape) * self.variance

    def inv_trace(self) -> Tensor:
        return prod(self.event_shape) / self.variance
