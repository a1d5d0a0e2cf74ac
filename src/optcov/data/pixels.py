"""Conversion between 8-bit images and the range [-1, 1] on which they are modelled."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """Convert grey levels 0..255 to float32 in [-1, 1]; any shape."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Convert values on [-1, 1] to the nearest grey level, clamped to 0..255.

    Args:
        x: samples of any float dtype, ``[n, ...]``.
    Raises:
        ValueError: if any of the n samples contains NaN or infinity.
    """
    if not x.isfinite().all():
        broken = int((~x.isfinite()).reshape(len(x), -1).any(1).sum())
        raise ValueError(
            f"samples must be finite ({broken} of {len(x)} contain NaN or infinity): train the mean network longer, or "
            "with trainer.precision=32-true"
        )
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
