"""What every operator of an inverse problem has.

An operator is made for events ``[*event]`` and acts on batches.  Units are those of the network's data: y is A applied
to images in the network's own range, such as [-1, 1], and the noise has the units of y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optcov.covariance.bases import Basis


class ForwardModel(nn.Module, ABC):
    """A map from events to measurements, linear or not.

    Args:
        event_shape: shape of x.
        measurement_shape: shape of y.
    """

    def __init__(self, event_shape: Sequence[int], measurement_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape, self.measurement_shape = torch.Size(event_shape), torch.Size(measurement_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What would be measured of ``x``, ``[B, *event]``, without noise, ``[B, *measurement]``."""

    @abstractmethod
    def near(self, x: Tensor) -> Operator:
        """The linear part of the map near ``x``, ``[B, *event]``."""

    def accept(self, y: Tensor, name: str = "y") -> Tensor:
        """Return a user's measurement, ``[*measurement]`` or ``[n, *measurement]``, as a batch.

        Args:
            y: the measurement.
            name: what messages call it.
        Raises:
            ValueError: if it has another shape, or values that are not finite.
        """
        shape = self.measurement_shape
        if y.shape == shape:
            y = y[None]
        if y.shape[1:] != shape or y.ndim != len(shape) + 1:
            raise ValueError(
                f"{name} must have shape {self.shapes()}, or one more axis for several measurements (got "
                f"{tuple(y.shape)}): give what the operator returns for an image"
            )
        if not bool(torch.isfinite(y).all()):
            raise ValueError(f"{name} must hold finite numbers (got nan or inf): use a mask for missing values")
        return y

    def shapes(self) -> str:
        """The shapes that `accept` takes, for messages."""
        return f"{tuple(self.measurement_shape)}"


class Operator(ForwardModel):
    """A linear map from events to measurements; ``operator(x)`` is ``A x``, and ``operator.adjoint(y)`` is ``A^T y``.

    Attributes:
        selects: whether A only selects values, so that ``A A^T = I`` and ``A^T D A`` is diagonal for diagonal D.
        is_normal: whether ``A A^T = A^T A``, as for a circular blur without a stride.
        differs: whether the samples of a batch have different maps.
    """

    selects: bool = False
    is_normal: bool = False
    differs: bool = False

    def near(self, x: Tensor) -> Operator:
        return self

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

    def gram_in_basis(self) -> tuple[Basis, Tensor] | None:
        """Q and p with ``A A^T = Q diag(p) Q^T``, if such a basis is known.

        Returns:
            an orthonormal basis of measurements, and p, not negative, float64 ``[*measurement]``; None if it is not
            known.
        """
        return None

    def response(self, basis: Basis) -> Tensor | None:
        """The g with ``A = Q diag(g) Q^T`` in a basis Q of events, if A is diagonal in it.

        Returns:
            g, float64 ``[*event]``, or None.
        """
        return None

    def matrix(self, like: Tensor) -> Tensor:
        """A as a matrix ``[m, d]``, with the precision and device of ``like``."""
        count = self.measurement_shape.numel()
        unit = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, *self.measurement_shape)
        return self.adjoint(unit).reshape(count, -1)


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
