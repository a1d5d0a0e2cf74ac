"""The operations of every kind of covariance.

Each kind is one class in its own file.  Events have d dimensions in any shape, and the batch comes first:
``[B, *event]``.  No default changes the matrix: operations that a kind does not override are exact but cost d products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from optcov.schedule.levels import per_sample

DENSE_LIMIT = 4096  # largest d for which a d x d matrix is formed: 128 MiB per sample in float64


class Noise(Protocol):
    """A source of white noise, one stream per sample: see `optcov.sampler.NoiseStream`."""

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Draw standard normal numbers ``[B, *shape]``; ``shape`` defaults to the shape of an event."""


class Covariance(ABC):
    """A batch of symmetric positive semi-definite matrices on events, one per sample.

    Attributes:
        is_diagonal: whether all correlations are 0, so that `diagonal` determines the matrix.
    """

    is_diagonal: ClassVar[bool] = False

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """``[B, *event]``."""

    @property
    def dim(self) -> int:
        """d, the number of dimensions of an event."""
        return self.shape[1:].numel()

    @abstractmethod
    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        """``scale * C + shift * I``; both 0-dimensional or ``[B]``, scale not negative."""

    @abstractmethod
    def bounded(self, high: float | Tensor | None) -> Covariance:
        """Limit the diagonal entries to ``high``; C is unchanged if none exceeds it.

        The result is the congruence ``S C S`` with ``S = diag(min(1, sqrt(high / C_ii)))``, which keeps correlations
        and stays positive semi-definite; isotropic and diagonal kinds are clamped.  Negative estimates become 0.

        Args:
            high: not negative, a number or 0-dimensional; None for no upper bound, so that only negative estimates
                change.
        """

    @abstractmethod
    def draw(self, noise: Noise) -> Tensor:
        """Draw from ``N(0, C)``, ``[B, *event]``, taking as many numbers from the stream as the kind needs."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Variance of each coordinate, ``[B, *event]``."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """``C v`` for ``v`` of shape ``[B, *event]``."""

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """``C^{-1} v`` for ``v`` of shape ``[B, *event]``; not finite where C is singular."""

    @abstractmethod
    def logdet(self) -> Tensor:
        """``log det C`` of each sample, ``[B]``; -inf where C is singular."""

    @abstractmethod
    def lerp(self, other: Covariance, weight: float) -> Covariance:
        """``C + weight (other - C)`` with all correlations; outside [0, 1] the result may need `bounded`."""

    def congruence(self, scale: Tensor) -> Covariance:
        """``S C S`` for ``S = diag(scale)``, ``scale`` not negative and of shape ``[B, *event]``."""
        from optcov.covariance.total import CongruentCovariance

        return CongruentCovariance(scale, self)

    def inv_quad(self, v: Tensor) -> Tensor:
        """``v^T C^{-1} v`` of each sample, ``[B]``, for ``v`` of shape ``[B, *event]``."""
        return (v * self.solve(v)).flatten(1).sum(1)

    def trace(self) -> Tensor:
        """``tr C`` of each sample, ``[B]``."""
        return self.diagonal().flatten(1).sum(1)

    def inv_trace(self) -> Tensor:
        """``tr C^{-1}`` of each sample, ``[B]``.  The default makes d calls of `solve`."""
        return torch.stack([self.inv_quad(unit) for unit in unit_vectors(self.diagonal())]).sum(0)

    def dense(self) -> Tensor:
        """The matrices ``[B, d, d]``.  The default makes d calls of `matvec`.

        Raises:
            ValueError: if d is above `DENSE_LIMIT`.
        """
        check_dense(self.dim)
        return torch.stack([self.matvec(unit).flatten(1) for unit in unit_vectors(self.diagonal())], dim=-1)


def unit_vectors(like: Tensor) -> Iterator[Tensor]:
    """Yield the d unit vectors of an event, each of the shape of ``like`` (``[B, *event]``), equal in all samples."""
    rows = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
    return (row.reshape(like.shape[1:]).expand_as(like) for row in rows)


def check_dense(dim: int) -> None:
    """Refuse a d x d matrix that is too large to form.

    Raises:
        ValueError: if ``dim`` is above `DENSE_LIMIT`.
    """
    if dim > DENSE_LIMIT:
        raise ValueError(
            f"a dense covariance must have at most {DENSE_LIMIT} dimensions (got {dim}): use a structured or "
            "matrix-free kind"
        )


def bounding_scale(variance: Tensor, high: float | Tensor) -> Tensor:
    """S of the congruence that brings variances ``[B, *event]`` within ``high``: ``min(1, sqrt(high / variance))``."""
    # the bound is made a tensor because PyTorch computes number / tensor as number * reciprocal, which gives 0 * inf
    # for a subnormal variance
    bound = per_sample(high, variance) if isinstance(high, Tensor) else torch.full_like(variance, high)
    return torch.where(variance > bound, (bound / variance).sqrt(), 1.0)


def clamped(variance: Tensor, high: float | Tensor | None) -> Tensor:
    """Clamp variances to [0, high].  A number stays a number, because making a tensor of it would wait for a GPU."""
    if isinstance(high, Tensor):
        return variance.clamp(min=0).minimum(per_sample(high, variance))
    return variance.clamp(0.0, high)
