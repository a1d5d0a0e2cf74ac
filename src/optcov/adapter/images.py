"""Converts images in the forms that users have them to the range of a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optcov.data.base import DataSource
from optcov.denoiser import Denoiser

Images = Tensor | np.ndarray[Any, Any] | DataSource | Iterable[Any]
"""Data ``[n, *event]``: float in the denoiser's range, or uint8 grey levels; the training split of a source of
`optcov.data`; an iterable of batches, of single images (Pillow's, too), or of either with labels, ``(batch, labels)``,
which are ignored."""


def data(denoiser: Denoiser, images: Images) -> Tensor:
    """Convert images to float32 ``[n, *event]`` in the denoiser's range, on the CPU.

    Raises:
        ValueError: if they have another shape, lie outside the range, or are not finite.
    """
    shape, data_range = denoiser.data_shape, denoiser.data_range
    if isinstance(images, DataSource):
        raw = images.train
        images = raw if raw.dtype == torch.uint8 else data_range.from_unit(images.normalize(raw))
    elif isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    elif not isinstance(images, Tensor):
        images = _joined(images, shape)
    if images.shape[1:] != shape or len(images) == 0:
        remedy = "give data of the shape that the network was trained on"
        if images.shape == shape:
            remedy = "give several, as images[None] gives one"
        elif len(shape) == 3 and images.shape[1:] == (*shape[1:], shape[0]):
            remedy = "put the channels first, by images.transpose(0, 3, 1, 2) of an array or permute of a tensor"
        raise ValueError(
            f"images must have the shape [n, {', '.join(map(str, shape))}] (got {list(images.shape)}): {remedy}"
        )
    if images.is_complex():
        raise ValueError("images must be real (got complex numbers): give their real part, or both parts as channels")
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
        if float(unit.min()) >= 0 and not bool(unit.max() == unit.min()):
            warnings.warn(
                f"images fill only the upper half of the network's range [{_words(data_range.low)}, "
                f"{_words(data_range.high)}] (got {float(x_0.min()):.4g} to {float(x_0.max()):.4g}): scale them if "
                "they lie in [0, 1] and the network's data do not",
                stacklevel=3,
            )
    return x_0


def _joined(items: Iterable[Any], shape: tuple[int, ...]) -> Tensor:
    """Batches or single images, in one tensor on the CPU.

    Raises:
        ValueError: if there are none, or one is not an array of a usual shape.
    """
    batches: list[Tensor] = []
    for item in items:
        each = item[0] if isinstance(item, tuple | list) else item
        if hasattr(each, "convert") and hasattr(each, "getbands"):  # Pillow's
            each = _of_pillow(each, shape)
        try:
            batch = torch.as_tensor(each).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"images must be tensors or arrays, or pairs of one and labels (got {type(each).__name__}): give "
                "such batches, for a dictionary its values"
            ) from None
        batch = batch[None] if batch.shape == shape else batch
        if batches and batch.shape[1:] != batches[0].shape[1:]:
            raise ValueError(
                f"images must be of one shape (got {list(batches[0].shape[1:])} and {list(batch.shape[1:])}): "
                "resize them"
            )
        batches.append(batch)
    if not batches:
        raise ValueError("images must not be empty: give at least one batch")
    return torch.cat(batches)


def _of_pillow(image: Any, shape: tuple[int, ...]) -> Tensor:
    """An image of Pillow as uint8 ``[C, H, W]``, grey or in colour as the network's data are."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if len(shape) != 3 or shape[0] not in modes:
        raise ValueError(
            f"images must be tensors for a network of {list(shape)} (got images of Pillow): give arrays of that shape"
        )
    pixels = np.array(image.convert(modes[shape[0]]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], shape[0])).permute(2, 0, 1)


def _words(end: Any) -> str:
    """An end of a range, or those of its channels."""
    return "/".join(f"{each:.4g}" for each in end) if isinstance(end, tuple) else f"{end:.4g}"
