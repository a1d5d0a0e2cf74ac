r"""Linear operators A of inverse problems ``y = A x_0 + noise``, each with its adjoint.

mask            keeps some of the values (inpainting); A A^T = I
block average   averages blocks of k x k pixels (super-resolution); no two rows use the same value
matrix          any matrix, such as random projections
pair            any function and its adjoint, such as those of a physics library

Blurs are in `optcov.inverse.blur`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optcov.inverse.base import Operator, image_shape


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

    def complement(self) -> Mask:
        """The mask that selects what this one hides, which must be something."""
        seen = torch.zeros(self.event_shape.numel(), device=self.index.device)
        seen[self.index] = 1
        return Mask(self.event_shape, 1 - seen.reshape(self.event_shape))

    def accept(self, y: Tensor, name: str = "y") -> Tensor:
        """As in `Operator`; images ``[*event]`` or ``[n, *event]`` are accepted too, and their values selected."""
        images = y[None] if y.shape == self.event_shape else y
        if images.shape[1:] == self.event_shape and images.ndim == len(self.event_shape) + 1:
            y = self.forward(images)
        return super().accept(y, name)

    def shapes(self) -> str:
        return f"{tuple(self.measurement_shape)} or {tuple(self.event_shape)}"


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
