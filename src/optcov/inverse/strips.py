"""Sums over parallel strips at several angles, as a scanner measures them: a discrete Radon transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.inverse.base import Operator, image_shape


class Strips(Operator):
    """The sum of the pixels in each strip, one pixel wide, for each angle and channel; y is ``[C, angles, strips]``.

    A pixel whose centre lies between the middles of two strips is shared between them in proportion, so that each
    angle's strips add up to the sum of the image.  Sums have the unit of the data, and so does their noise: on [-1, 1]
    a strip across H white pixels measures H.

    Args:
        event_shape: ``(C, H, W)``.
        angles: in degrees; 0 sums over columns, 90 over rows.  A number stands for as many, evenly from 0 to 180.
    Raises:
        ValueError: if there is no angle, one is not finite, or events are not images.
    """

    weights: Tensor

    def __init__(self, event_shape: Sequence[int], angles: int | Sequence[float] = 12) -> None:
        channels, height, width = image_shape(event_shape)
        given = [180 * i / angles for i in range(angles)] if isinstance(angles, int) else list(map(float, angles))
        if not given or not all(map(math.isfinite, given)):
            raise ValueError(f"angles must be at least one finite angle in degrees (got {angles}): give 12 or [0, 90]")
        strips = 2 * math.ceil(math.hypot(height - 1, width - 1) / 2) + 1
        super().__init__((channels, height, width), (channels, len(given), strips))
        y, x = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in (height, width))
        turn = torch.tensor(given, dtype=torch.float64).deg2rad()[:, None, None]
        place = (x * turn.cos() + y[:, None] * turn.sin() + strips // 2).flatten(1)  # [angles, H W], in strips
        low = place.floor().clamp(0, strips - 2)
        share = place - low
        first = low.long() + strips * torch.arange(len(given))[:, None]
        pixel = torch.arange(height * width).expand(len(given), -1)
        index = torch.stack([torch.cat([first, first + 1]).flatten(), torch.cat([pixel, pixel]).flatten()])
        values, shape = torch.cat([1 - share, share]).flatten(), (len(given) * strips, height * width)
        weights = torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(self.weights, x, self.measurement_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._product(self.weights.mT, y, self.event_shape)

    def _product(self, matrix: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Multiply a sparse matrix with each channel."""
        found: Tensor = torch.sparse.mm(matrix.to(x.dtype), x.reshape(-1, matrix.shape[1]).T)
        return found.T.reshape(len(x), *shape)
