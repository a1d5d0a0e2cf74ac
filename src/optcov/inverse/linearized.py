"""Measurements by a non-linear function, which each step replaces by a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from optcov.inverse.base import ForwardModel, Operator


class LinearizedOperator(ForwardModel):
    """A differentiable function h, which each step of a chain replaces by ``h(m) + J (x - m)`` around its mean m.

    J is the Jacobian of h at m, of which products are taken: none of them calls the network.  What a step then draws
    from is the posterior of that linear measurement, as in an extended Kalman filter; it is exact if h is linear, and
    close where h is nearly linear over the spread of C, which shrinks as t falls.

    Args:
        event_shape: shape of x.
        function: h, ``[B, *event] -> [B, *measurement]``, differentiable; each sample's result depends on that sample
            alone.
    """

    def __init__(self, event_shape: Sequence[int], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(event_shape, function(torch.zeros(1, *event_shape)).shape[1:])
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def near(self, x: Tensor) -> Operator:
        return Tangent(self, x)


class Tangent(Operator):
    """The Jacobian of a function, with one point for each sample.

    Args:
        model: the function.
        point: m, ``[B, *event]``.
    """

    differs = True

    def __init__(self, model: LinearizedOperator, point: Tensor) -> None:
        super().__init__(model.event_shape, model.measurement_shape)
        self.function, self.point = model.function, point.detach()
        with torch.enable_grad():
            self.pullback = torch.func.vjp(self.function, self.point)[1]

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(self.function, (self.point,), (x,))[1]
        return product

    def adjoint(self, y: Tensor) -> Tensor:
        product: Tensor = self.pullback(y)[0]
        return product.detach()

    def matrix(self, like: Tensor) -> Tensor:
        """The Jacobians ``[B, m, d]``."""
        count = self.measurement_shape.numel()
        units = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, 1, *self.measurement_shape)
        rows = [self.adjoint(unit.expand(len(self.point), *self.measurement_shape)).flatten(1) for unit in units]
        return torch.stack(rows, 1)
