"""Covariances as objects: what a strategy returns and all that samplers and likelihoods ask of it.

A kind is a class with the operations of :class:`Covariance`; a new one (diagonal in an orthonormal basis, diagonal plus
low rank, matrix-free) joins by implementing them, without a change in any sampler.  Events have d dimensions in any
shape, batches come first: ``[B, *event]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from optcov.broadcast import per_sample

Bound = TypeVar("Bound", float, Tensor)


class Covariance(ABC):
    """A batch of symmetric positive semi-definite matrices on events, one per sample."""

    @abstractmethod
    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        """``scale * C + shift * I``; both 0-dimensional or ``[B]``, not negative."""

    @abstractmethod
    def clamp(self, low: Bound, high: Bound) -> Covariance:
        """The same eigenvectors, eigenvalues clamped to ``[low, high]``, two numbers or two tensors."""

    @abstractmethod
    def sqrt_mul(self, z: Tensor) -> Tensor:
        """``C^{1/2} z``: turns white noise ``[B, *event]`` into a draw from N(0, C)."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Variance of each coordinate, ``[B, *event]``."""

    @abstractmethod
    def inv_quad(self, v: Tensor) -> Tensor:
        """``v^T C^{-1} v`` of each sample, ``[B]``, for ``v`` of shape ``[B, *event]``."""

    @abstractmethod
    def logdet(self) -> Tensor:
        """``log det C`` of each sample, ``[B]``; -inf where C is singular."""

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        """``C + weight (other - C)``, which beyond 0 and 1 may want :meth:`clamp`; here of the diagonals alone, which a
        kind can better."""
        return DiagonalCovariance(torch.lerp(self.diagonal(), other.diagonal(), weight))

    def inv_trace(self) -> Tensor:
        """``tr C^{-1}`` of each sample, ``[B]``; here by d calls of :meth:`inv_quad`, which a kind can better."""
        like = self.diagonal()
        basis = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
        quads = [self.inv_quad(vector.reshape(1, *like.shape[1:]).expand_as(like)) for vector in basis]
        return torch.stack(quads).sum(0)


def _clamped(variance: Tensor, low: Bound, high: Bound) -> Tensor:
    """Clamped in its own precision.  Numbers stay numbers: to make a tensor of one is to wait for a GPU."""
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return variance.clamp(low.to(variance), high.to(variance))
    return variance.clamp(low, high)


class DiagonalCovariance(Covariance):
    """One variance per coordinate.

    Args:
        variance: ``[B, *event]``; an estimate that fell below 0 is mended by :meth:`clamp`.
    """

    def __init__(self, variance: Tensor) -> None:
        self.variance = variance

    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        v = self.variance
        return DiagonalCovariance(per_sample(scale, v) * v + per_sample(shift, v))

    def clamp(self, low: Bound, high: Bound) -> Covariance:
        return DiagonalCovariance(_clamped(self.variance, low, high))

    def sqrt_mul(self, z: Tensor) -> Tensor:
        return self.variance.sqrt() * z

    def diagonal(self) -> Tensor:
        return self.variance

    def inv_quad(self, v: Tensor) -> Tensor:
        return (v**2 / self.variance).flatten(1).sum(1)

    def logdet(self) -> Tensor:
        return self.variance.log().flatten(1).sum(1)

    def inv_trace(self) -> Tensor:
        return (1 / self.variance).flatten(1).sum(1)


class IsotropicCovariance(Covariance):
    """One variance for all coordinates, ``C = variance * I``.

    Args:
        variance: ``[B]``; an estimate that fell below 0 is mended by :meth:`clamp`.
        event_shape: shape of one sample, of d = prod(event_shape) dimensions.
    """

    def __init__(self, variance: Tensor, event_shape: torch.Size | tuple[int, ...]) -> None:
        self.variance = variance
        self.event_shape = tuple(event_shape)

    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        v = self.variance
        return IsotropicCovariance(scale.to(v.dtype) * v + shift.to(v.dtype), self.event_shape)

    def clamp(self, low: Bound, high: Bound) -> Covariance:
        return IsotropicCovariance(_clamped(self.variance, low, high), self.event_shape)

    def sqrt_mul(self, z: Tensor) -> Tensor:
        return per_sample(self.variance.sqrt(), z) * z

    def diagonal(self) -> Tensor:
        ones = self.variance.new_ones(len(self.variance), *self.event_shape)
        return per_sample(self.variance, ones) * ones

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        if not isinstance(other, IsotropicCovariance):
            return super().lerp(other, weight)
        return IsotropicCovariance(torch.lerp(self.variance, other.variance, weight), self.event_shape)

    def inv_quad(self, v: Tensor) -> Tensor:
        return (v**2).flatten(1).sum(1) / self.variance

    def logdet(self) -> Tensor:
        return prod(self.event_shape) * self.variance.log()

    def inv_trace(self) -> Tensor:
        return prod(self.event_shape) / self.variance
