r"""Orthonormal bases of events: the coefficients of x are ``Q^T x`` and have the shape of x.

DCT    cosines along each axis of an image or a vector: H_kn = s_k cos(pi (2 n + 1) k / (2 N)), s_0 = sqrt(1 / N),
       s_k = sqrt(2 / N) (Ahmed, Natarajan and Rao 1974, type II); channels may have a separate basis
waves  cos + sin along the last two axes, a real basis in which symmetric circular convolutions are diagonal
PCA    the principal axes of data, for few dimensions
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from optcov.covariance.base import check_dense


class Basis(ABC):
    """An orthonormal basis Q of events.

    Attributes:
        event_shape: shape of the events and of their coefficients.
        differs: whether the samples of a batch have different vectors.
    """

    event_shape: torch.Size
    differs: bool = False

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients ``Q^T x``, ``[B, *event]``."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The events ``Q c``, ``[B, *event]``."""

    @abstractmethod
    def spread(self, variance: Tensor) -> Tensor:
        """The diagonal of ``Q diag(variance) Q^T``, ``[B, *event]``."""

    @abstractmethod
    def gather(self, variance: Tensor) -> Tensor:
        """The diagonal of ``Q^T diag(variance) Q``, ``[B, *event]``."""

    def same(self, other: Basis) -> bool:
        """Whether the other basis is known to be this one."""
        return self is other


class DCT(Basis):
    """Cosines along the axes of an event.

    Args:
        event_shape: ``(C, H, W)``, of which H and W are transformed, or ``(d,)``, of which d is transformed.
        channels: an orthonormal basis of the C channels with its vectors in columns, ``[C, C]``, or one per sample,
            ``[B, C, C]``; all axes except the first are then transformed by cosines (none for ``(d,)``).  None to leave
            channels unchanged.
    Raises:
        ValueError: if the basis of the channels has another shape.
    """

    def __init__(self, event_shape: torch.Size | tuple[int, ...], channels: Tensor | None = None) -> None:
        self.event_shape = torch.Size(event_shape)
        self.channels = channels
        self.differs = channels is not None and channels.ndim == 3
        count = self.event_shape[0]
        if channels is not None and channels.shape[-2:] != (count, count):
            raise ValueError(
                f"channels must be an orthonormal basis [{count}, {count}] (got {tuple(channels.shape)}): give one "
                "vector per channel"
            )
        kept = 1 if channels is not None or len(self.event_shape) > 1 else 0
        self.axes = tuple(range(1 + kept, 1 + len(self.event_shape)))

    def analyse(self, x: Tensor) -> Tensor:
        if self.channels is not None:
            x = self._mixed(x, self.channels.mT)
        for axis in self.axes:
            x = _along(x, dct_matrix(x.shape[axis], x.dtype, x.device), axis)
        return x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        x = coefficients
        for axis in self.axes:
            x = _along(x, dct_matrix(x.shape[axis], x.dtype, x.device).mT, axis)
        return x if self.channels is None else self._mixed(x, self.channels)

    def spread(self, variance: Tensor) -> Tensor:
        if self.channels is not None:
            variance = self._mixed(variance, self.channels**2)
        for axis in self.axes:
            matrix = dct_matrix(variance.shape[axis], variance.dtype, variance.device)
            variance = _along(variance, (matrix**2).mT, axis)
        return variance

    def gather(self, variance: Tensor) -> Tensor:
        if self.channels is not None:
            variance = self._mixed(variance, (self.channels**2).mT)
        for axis in self.axes:
            variance = _along(variance, dct_matrix(variance.shape[axis], variance.dtype, variance.device) ** 2, axis)
        return variance

    def same(self, other: Basis) -> bool:
        if not isinstance(other, DCT) or self.event_shape != other.event_shape:
            return False
        return self.channels is other.channels and self.axes == other.axes

    def _mixed(self, x: Tensor, matrix: Tensor) -> Tensor:
        return (matrix.to(x.dtype) @ x.flatten(2) if x.ndim > 2 else (matrix.to(x.dtype) @ x[..., None])).reshape(
            x.shape
        )


class Hartley(Basis):
    """Waves ``cas(2 pi (k n / H + l m / W)) / sqrt(H W)`` with ``cas = cos + sin`` (Hartley 1942; Bracewell 1983).

    The basis is real and its own inverse.  A variance that is the same at opposite frequencies is that of a circulant
    covariance.

    Args:
        event_shape: ``(..., H, W)``, of which H and W are transformed.
    """

    def __init__(self, event_shape: torch.Size | tuple[int, ...]) -> None:
        self.event_shape = torch.Size(event_shape)

    def analyse(self, x: Tensor) -> Tensor:
        waves: Tensor = torch.fft.fft2(x, norm="ortho")
        return waves.real - waves.imag

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return self.analyse(coefficients)

    def spread(self, variance: Tensor) -> Tensor:
        # cas^2 = 1 + sin of twice the angle
        height, width = self.event_shape[-2:]
        rows, columns = (2 * torch.arange(size, device=variance.device) % size for size in (height, width))
        sines: Tensor = torch.fft.fft2(variance).imag[..., rows[:, None], columns]
        return (variance.sum((-2, -1), keepdim=True) - sines) / (height * width)

    def gather(self, variance: Tensor) -> Tensor:
        return self.spread(variance)

    def same(self, other: Basis) -> bool:
        return isinstance(other, Hartley) and self.event_shape == other.event_shape


class PCA(Basis):
    """Any orthonormal vectors, such as the principal axes of data.

    Args:
        axes: the vectors in columns, ``[d, d]``.
        event_shape: shape of an event, with d = prod(event_shape) dimensions.
    Raises:
        ValueError: if the shapes do not fit together, or d is above `optcov.covariance.base.DENSE_LIMIT`.
    """

    def __init__(self, axes: Tensor, event_shape: torch.Size | tuple[int, ...]) -> None:
        self.axes, self.event_shape = axes, torch.Size(event_shape)
        d = self.event_shape.numel()
        check_dense(d)
        if axes.shape != (d, d):
            raise ValueError(f"axes must have shape [{d}, {d}] (got {tuple(axes.shape)}): give d vectors in columns")

    @classmethod
    def of(cls, images: Tensor) -> tuple[PCA, Tensor]:
        """The principal axes of data ``[n, *event]``, and the variance along each, float64 ``[*event]``, ascending.

        Raises:
            ValueError: if there are fewer than two images, or d is above `optcov.covariance.base.DENSE_LIMIT`.
        """
        check_dense(images[0].numel())
        if len(images) < 2:
            raise ValueError(f"images must be at least 2 (got {len(images)}): a covariance needs two")
        values, axes = torch.linalg.eigh(images.flatten(1).double().T.cov())
        return cls(axes, images.shape[1:]), values.clamp(min=0).reshape(images.shape[1:])

    def analyse(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.axes.to(x.dtype)).reshape(x.shape)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return (coefficients.flatten(1) @ self.axes.to(coefficients.dtype).T).reshape(coefficients.shape)

    def spread(self, variance: Tensor) -> Tensor:
        return (variance.flatten(1) @ (self.axes.to(variance.dtype) ** 2).T).reshape(variance.shape)

    def gather(self, variance: Tensor) -> Tensor:
        return (variance.flatten(1) @ self.axes.to(variance.dtype) ** 2).reshape(variance.shape)


@lru_cache(maxsize=32)
def dct_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix H, whose rows are the cosines, ``[size, size]``."""
    n = torch.arange(size, dtype=torch.float64, device=device)
    matrix = torch.cos(math.pi / (2 * size) * n[:, None] * (2 * n + 1)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(dtype)


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply a matrix with x along an axis."""
    if axis == x.ndim - 1:
        return x @ matrix.mT
    if axis == x.ndim - 2:
        return matrix @ x
    return (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
