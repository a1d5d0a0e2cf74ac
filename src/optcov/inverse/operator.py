r"""Linear operators A of inverse problems ``y = A x_0 + noise``, each with its adjoint.

mask            keeps some of the values (inpainting); A A^T = I
block average   averages blocks of k x k pixels (super-resolution); no two rows use the same value
blur            a circular convolution by FFT; with a stride k, it keeps every k-th pixel (super-resolution)
matrix          any matrix, such as random projections
pair            any function and its adjoint, such as those of a physics library

An operator is made for events ``[*event]`` and acts on batches.  Units are those of the network's data: y is A applied
to images in the network's own range, such as [-1, 1], and the noise has the units of y.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Operator(nn.Module, ABC):
    """A linear map from events to measurements; ``operator(x)`` is ``A x``, and ``operator.adjoint(y)`` is ``A^T y``.

    Args:
        event_shape: shape of x.
        measurement_shape: shape of y.
    Attributes:
        selects: whether A only selects values, so that ``A A^T = I`` and ``A^T D A`` is diagonal for diagonal D.
    """

    selects: bool = False

    def __init__(self, event_shape: Sequence[int], measurement_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape, self.measurement_shape = torch.Size(event_shape), torch.Size(measurement_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``A x``, ``[B, *measurement]``, for ``x`` of shape ``[B, *event]``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y``, ``[B, *event]``, for ``y`` of shape ``[B, *measurement]``."""

    def gram(self, variance: Tensor) -> Tensor | None:
        """The diagonal of ``A diag(variance) A^T``, ``[B, *measurement]``, if that matrix is diagonal for any variance.

        Args:
            variance: ``[B, *event]``.
        Returns:
            the diagonal, or None for an operator that has two rows with a value in common.
        """
        return None

    def accept(self, y: Tensor) -> Tensor:
        """Return a user's measurement, ``[*measurement]`` or ``[n, *measurement]``, as a batch.

        Raises:
            ValueError: if it has another shape, or values that are not finite.
        """
        shape = self.measurement_shape
        if y.shape == shape:
            y = y[None]
        if y.shape[1:] != shape or y.ndim != len(shape) + 1:
            raise ValueError(
                f"y must have shape {tuple(shape)}, or one more axis for several measurements (got {tuple(y.shape)}): "
                "give a tensor of the shape that the operator returns for an image"
            )
        if not bool(torch.isfinite(y).all()):
            raise ValueError("y must hold finite numbers (got nan or inf): use a mask for values that are missing")
        return y

    def matrix(self, like: Tensor) -> Tensor:
        """A as a matrix ``[m, d]``, with the precision and device of ``like``."""
        count = self.measurement_shape.numel()
        unit = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, *self.measurement_shape)
        return self.adjoint(unit).reshape(count, -1)


class Mask(Operator):
    """Inpainting: selects the values where a mask is 1, in the order of a flattened event.

    Args:
        event_shape: shape of x.
        mask: zeros and ones, 1 where a value is measured; it broadcasts to the event, so that a mask ``[H, W]`` applies
            to all channels.
    Raises:
        ValueError: if the mask does not fit, has other values, or measures nothing.
    """

    selects = True
    index: Tensor

    def __init__(self, event_shape: Sequence[int], mask: Tensor) -> None:
        event, mask = torch.Size(event_shape), torch.as_tensor(mask)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                "mask must hold zeros and ones, 1 where a value is measured (got other values): threshold it first"
            )
        try:
            mask = mask.expand(event)
        except RuntimeError as error:
            raise ValueError(
                f"mask must have the shape of an image, {tuple(event)}, or of one channel (got {tuple(mask.shape)}): "
                "resize it"
            ) from error
        index = mask.flatten().nonzero()[:, 0]
        if len(index) == 0:
            raise ValueError("mask must have at least one 1 (got only zeros): set 1 where a value is measured")
        super().__init__(event, (len(index),))
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), self.event_shape.numel())
        x[:, self.index] = y
        return x.reshape(len(y), *self.event_shape)

    def gram(self, variance: Tensor) -> Tensor:
        return self.forward(variance)

    def accept(self, y: Tensor) -> Tensor:
        """As in `Operator`; images ``[*event]`` or ``[n, *event]`` are accepted too, and their values selected."""
        images = y[None] if y.shape == self.event_shape else y
        if images.shape[1:] == self.event_shape and images.ndim == len(self.event_shape) + 1:
            y = self.forward(images)
        return super().accept(y)


class BlockAverage(Operator):
    """Super-resolution: the mean of each block of ``factor x factor`` pixels.

    Args:
        event_shape: ``(C, H, W)``.
        factor: k, a divisor of H and W.
    Raises:
        ValueError: if it does not divide them, or events are not images.
    """

    def __init__(self, event_shape: Sequence[int], factor: int = 2) -> None:
        channels, height, width = image_shape(event_shape)
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"factor must divide the sides {height} and {width} of images (got {factor}): give a divisor such as 2"
            )
        super().__init__((channels, height, width), (channels, height // factor, width // factor))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        k = self.factor
        return y.repeat_interleave(k, -1).repeat_interleave(k, -2) / k**2

    def gram(self, variance: Tensor) -> Tensor:
        return self.forward(variance) / self.factor**2


class Blur(Operator):
    """A circular convolution of each channel by FFT; with a stride, only every ``stride``-th row and column is kept.

    Args:
        event_shape: ``(C, H, W)``.
        kernel: ``[h, w]``, no larger than the image; its centre is at ``(h // 2, w // 2)``.  None for a Gaussian.
        std: standard deviation of the Gaussian, in pixels, positive; ignored if a kernel is given.
        stride: 1 for a blur, more for super-resolution; it divides H and W.
    Raises:
        ValueError: if an argument is out of range, or events are not images.
    """

    spectrum: Tensor

    def __init__(
        self, event_shape: Sequence[int], kernel: Tensor | None = None, std: float = 1.0, stride: int = 1
    ) -> None:
        channels, height, width = image_shape(event_shape)
        if stride < 1 or height % stride or width % stride:
            raise ValueError(f"stride must divide the sides {height} and {width} of images (got {stride}): give 1 or 2")
        if kernel is None:
            if not 0 < std < math.inf:
                raise ValueError(f"std must be positive (got {std}): give the width of the blur in pixels, such as 1")
            kernel = _gaussian(height, std)[:, None] * _gaussian(width, std)
        kernel = torch.as_tensor(kernel).double()
        if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
            raise ValueError(
                f"kernel must have shape [h, w], at most {height} x {width} (got {tuple(kernel.shape)}): crop it"
            )
        super().__init__((channels, height, width), (channels, height // stride, width // stride))
        self.stride = stride
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        padded = padded.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
        self.register_buffer("spectrum", torch.fft.rfft2(padded), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self.spectrum)[..., :: self.stride, :: self.stride]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.event_shape)
        x[..., :: self.stride, :: self.stride] = y
        return self._filter(x, self.spectrum.conj())

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        spectrum = spectrum.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.event_shape[1:])
        return filtered


class MatrixOperator(Operator):
    """Any matrix, applied to flattened events.

    Args:
        event_shape: shape of x, with d dimensions in all.
        matrix: ``[m, d]``.
    Raises:
        ValueError: if the matrix does not fit.
    """

    weight: Tensor

    def __init__(self, event_shape: Sequence[int], matrix: Tensor) -> None:
        event = torch.Size(event_shape)
        if matrix.ndim != 2 or matrix.shape[1] != event.numel() or len(matrix) == 0:
            raise ValueError(
                f"matrix must have shape [m, {event.numel()}] (got {tuple(matrix.shape)}): give a row per measurement"
            )
        super().__init__(event, (len(matrix),))
        self.register_buffer("weight", matrix, persistent=False)

    @classmethod
    def random(cls, event_shape: Sequence[int], count: int, seed: int = 0) -> MatrixOperator:
        """Random projections: ``count`` rows of independent normal numbers, with expected squared length 1.

        Raises:
            ValueError: if ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1 (got {count}): give the number of projections")
        dim = torch.Size(event_shape).numel()
        generator = torch.Generator().manual_seed(seed)
        return cls(event_shape, torch.randn(count, dim, generator=generator) / math.sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.weight.to(y.dtype)).reshape(len(y), *self.event_shape)


class PairOperator(Operator):
    """A linear function on batches and its adjoint; random vectors check that the two belong together.

    Args:
        event_shape: shape of x.
        function: ``[B, *event] -> [B, *measurement]``, linear.
        adjoint: ``[B, *measurement] -> [B, *event]``; None to derive it from the function by autograd.
    Raises:
        ValueError: if ``<A x, y>`` and ``<x, A^T y>`` differ by more than a thousandth.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        function: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, *event_shape, generator=generator)
        image = function(x)
        super().__init__(event_shape, image.shape[1:])
        self.function, self.transposed = function, adjoint
        y = torch.randn(image.shape, generator=generator)
        one, other = float((image * y).sum()), float((x * self.adjoint(y)).sum())
        if not abs(one - other) <= 1e-3 * float(image.norm() * y.norm()):
            raise ValueError(
                f"adjoint must satisfy <A x, y> = <x, A^T y> (got {one:.4g} and {other:.4g}): correct its scale, or "
                "omit it, so that autograd derives it"
            )

    @classmethod
    def of(cls, event_shape: Sequence[int], physics: Any) -> PairOperator:
        """Wrap an object with methods ``A`` and ``A_adjoint``, such as deepinv's ``LinearPhysics``.

        Raises:
            ValueError: if it lacks one of them.
        """
        if not callable(getattr(physics, "A", None)) or not callable(getattr(physics, "A_adjoint", None)):
            raise ValueError(
                f"physics must have A and A_adjoint (got {type(physics).__name__}): give the two functions to "
                "PairOperator instead"
            )
        return cls(event_shape, physics.A, physics.A_adjoint)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.transposed is not None:
            return self.transposed(y)
        zero = torch.zeros(len(y), *self.event_shape, dtype=y.dtype, device=y.device)
        with torch.enable_grad():
            product: Tensor = torch.func.vjp(self.function, zero)[1](y)[0]
        return product


def image_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` for events that are images.

    Raises:
        ValueError: if events have other axes.
    """
    if len(event_shape) != 3:
        raise ValueError(
            f"data must be images (channels, height, width) for this operator (got shape {tuple(event_shape)}): use a "
            "mask or a matrix"
        )
    channels, height, width = event_shape
    return int(channels), int(height), int(width)


def _gaussian(size: int, std: float) -> Tensor:
    """A normalised Gaussian at each pixel of a side, float64 ``[size]``, centred at ``size // 2``."""
    distance = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(distance**2) / (2 * std**2))
    return weights / weights.sum()
