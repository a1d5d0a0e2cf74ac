"""One variance per coordinate."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, clamped
from optcov.schedule.levels import per_sample


class DiagonalCovariance(Covariance):
    """``C = diag(variance)``.

    Args:
        variance: ``[B, *event]``; `bounded` raises an estimate that fell below 0 to 0.
    """

    def __init__(self, variance: Tensor) -> None:
        self.variance = variance

    is_diagonal = True

    @property
    def shape(self) -> torch.Size:
        return self.variance.shape

    def affine(self, scale: Tensor, shift: Tensor) -> DiagonalCovariance:
        v = self.variance
        return DiagonalCovariance(per_sample(scale, v) * v + per_sample(shift, v))

    def bounded(self, high: float | Tensor | None) -> DiagonalCovariance:
        return DiagonalCovariance(clamped(self.variance, high))

    def draw(self, noise: Noise) -> Tensor:
        return self.variance.sqrt() * noise.draw()

    def diagonal(self) -> Tensor:
        return self.variance

    def matvec(self, v: Tensor) -> Tensor:
        return self.variance * v

    def solve(self, v: Tensor) -> Tensor:
        return v / self.variance

    def logdet(self) -> Tensor:
        return self.variance.log().flatten(1).sum(1)

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        if other.is_diagonal:
            return DiagonalCovariance(torch.lerp(self.variance, other.diagonal(), weight))
        from optcov.covariance.total import mix

        return mix(self, other, weight)

    def congruence(self, scale: Tensor) -> DiagonalCovariance:
        return DiagonalCovariance(scale**2 * self.variance)

    def inv_quad(self, v: Tensor) -> Tensor:
        return (v**2 / self.variance).flatten(1).sum(1)

    def inv_trace(self) -> Tensor:
        return (1 / self.variance).flatten(1).sum(1)
