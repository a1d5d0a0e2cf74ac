"""Converts images in the forms that users have them to the range of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optcov.denoiser import Denoiser

Images = Tensor | np.ndarray[Any, Any] | Iterable[Any]
"""Data ``[n, *event]``: float in the denoiser's range, or uint8 grey levels; an iterable of such batches, or of
``(batch, labels)``, of which the labels are ignored."""


def data(denoiser: Denoiser, images: Images) -> Tensor:
    """Convert images to float32 ``[n, *event]`` in the denoiser's range, on the CPU.

    Raises:
        ValueError: if they have another shape, lie outside the range, or are not finite.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    elif not isinstance(images, Tensor):
        batches = [each[0] if isinstance(each, tuple | list) else each for each in images]
        if not batches:
            raise ValueError("images must not be empty: give at least one batch")
        images = torch.cat([torch.as_tensor(each).cpu() for each in batches])
    shape, data_range = denoiser.data_shape, denoiser.data_range
    if images.shape[1:] != shape or len(images) == 0:
        raise ValueError(
            f"images must have the shape [n, {', '.join(map(str, shape))}] (got {list(images.shape)}): give data of "
            "the shape that the network was trained on"
        )
    if images.dtype == torch.uint8:
        if data_range.grey_level is None:
            raise ValueError("images must be float for a network whose data have no grey levels (got uint8)")
        return data_range.from_unit(images.cpu().float() / 127.5 - 1)
    x_0 = images.detach().cpu().to(torch.float32)
    if not x_0.isfinite().all():
        raise ValueError("images must be finite (got NaN or infinity): look at how they were made")
    if data_range.is_bounded:
        unit = data_range.to_unit(x_0)
        if float(unit.abs().max()) > 1.02:
            raise ValueError(
                f"images must lie in the network's range [{_words(data_range.low)}, {_words(data_range.high)}] (got "
                f"{float(x_0.min()):.4g} to {float(x_0.max()):.4g}): scale them, give uint8 grey levels, or load the "
                "network with another data_range"
            )
    return x_0


def _words(end: Any) -> str:
    """An end of a range, or those of its channels."""
    return "/".join(f"{each:.4g}" for each in end) if isinstance(end, tuple) else f"{end:.4g}"
