"""One visible place where float64 coefficients meet float32 images."""

from __future__ import annotations

from torch import Tensor


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient so that it multiplies a batch, in the batch's precision.

    Args:
        coefficient: 0-dimensional, or ``[B]`` with one value per sample; any float dtype.
        x: the batch, ``[B, ...]``.
    Returns:
        The coefficient in ``x.dtype``, 0-dimensional or ``[B, 1, ..., 1]``.
    """
    if coefficient.ndim == 1:
        coefficient = coefficient.reshape((-1,) + (1,) * (x.ndim - 1))
    return coefficient.to(x.dtype)
