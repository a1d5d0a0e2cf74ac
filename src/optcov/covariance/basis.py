"""Variances along the vectors of an orthonormal basis: ``C = Q diag(variance) Q^T``."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, bounding_scale
from optcov.covariance.bases import Basis
from optcov.schedule.levels import per_sample


class BasisCovariance(Covariance):
    """Independent coefficients in a basis, such as the cosines of images.

    Bounding its diagonal leaves no closed form for the other operations, so `bounded` returns a `CongruentCovariance`.
    Its draws cost the same, and its solutions stay those of the basis where the bound changed nothing.

    Args:
        basis: Q.
        variance: variances of the coefficients, ``[B, *event]``; `bounded` raises negative estimates to 0.
    Raises:
        ValueError: if the basis is for events of another shape.
    """

    def __init__(self, basis: Basis, variance: Tensor) -> None:
        if variance.shape[1:] != basis.event_shape:
            raise ValueError(
                f"basis must be for events {tuple(variance.shape[1:])} (got one for {tuple(basis.event_shape)}): "
                "make it for the shape of the data"
            )
        self.basis, self.variance = basis, variance

    @property
    def shape(self) -> torch.Size:
        return self.variance.shape

    def affine(self, scale: Tensor, shift: Tensor) -> BasisCovariance:
        v = self.variance
        return BasisCovariance(self.basis, per_sample(scale, v) * v + per_sample(shift, v))

    def bounded(self, high: float | Tensor | None) -> Covariance:
        positive = BasisCovariance(self.basis, self.variance.clamp(min=0))
        return positive if high is None else positive.congruence(bounding_scale(positive.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        return self.basis.synthesise(self.variance.sqrt() * noise.draw())

    def diagonal(self) -> Tensor:
        return self.basis.spread(self.variance)

    def matvec(self, v: Tensor) -> Tensor:
        return self.basis.synthesise(self.variance * self.basis.analyse(v))

    def solve(self, v: Tensor) -> Tensor:
        return self.basis.synthesise(self.basis.analyse(v) / self.variance)

    def logdet(self) -> Tensor:
        return self.variance.log().flatten(1).sum(1)

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        from optcov.covariance.total import mix

        if isinstance(other, BasisCovariance) and self.basis.same(other.basis):
            return BasisCovariance(self.basis, torch.lerp(self.variance, other.variance, weight))
        return mix(self, other, weight)

    def inv_quad(self, v: Tensor) -> Tensor:
        return (self.basis.analyse(v) ** 2 / self.variance).flatten(1).sum(1)

    def trace(self) -> Tensor:
        return self.variance.flatten(1).sum(1)

    def inv_trace(self) -> Tensor:
        return (1 / self.variance).flatten(1).sum(1)
