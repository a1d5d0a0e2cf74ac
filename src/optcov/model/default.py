"""The default model: a U-Net for images, an MLP for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from optcov.model.mlp import MLP
from optcov.model.unet import UNet


def default_model(data_shape: Sequence[int]) -> UNet | MLP:
    """The model with default arguments that takes samples of a shape.

    Args:
        data_shape: ``(C, H, W)`` of images or ``(D,)`` of vectors.
    """
    return UNet(data_shape) if len(data_shape) == 3 else MLP(data_shape)
