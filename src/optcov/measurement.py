"""Measurements from files, for ``guidance=measurement`` on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optcov.data.decode import channels_first, decode
from optcov.data.untrusted import read_array
from optcov.denoiser import Denoiser
from optcov.guidance.measurement import MeasurementGuidance, OperatorFactory
from optcov.inverse import Mask


def from_file(
    denoiser: Denoiser,
    num_classes: int | None = None,
    *,
    operator: OperatorFactory,
    measurement: str | None,
    noise: float = 0.05,
    estimate: str = "sample",
    solver_steps: int = 50,
) -> MeasurementGuidance:
    """A guidance towards the measurement in a file, one for all samples.

    Args:
        denoiser: the mean network.
        num_classes: K, the number of classes of the data; labels, if any, go to the network.
        operator: makes A from the shape of the data.
        measurement: an image, whose grey levels are brought into the network's range, or a ``.npy`` array, of bytes
            (grey levels) or of floats in that range.
        noise: the standard deviation of its noise, in that range: on [-1, 1], twice that on [0, 1].
        estimate, solver_steps: as in `MeasurementGuidance`.
    Raises:
        ValueError: if there is no such file, or it does not fit.
    """
    if measurement is None:
        raise ValueError(
            "guidance.measurement must be a file (got none): give guidance.measurement=FILE, an image or a .npy array"
        )
    y = read(Path(measurement), "guidance.measurement", denoiser.data_shape)
    if y.dtype == torch.uint8:
        y = denoiser.data_range.from_unit(y[None].float() / 127.5 - 1)[0]
    return MeasurementGuidance(
        denoiser, num_classes, operator=operator, y=y, noise=noise, estimate=estimate, solver_steps=solver_steps
    )


def inpaint(event_shape: tuple[int, ...], mask: str | None = None) -> Mask:
    """The operator of inpainting.

    Args:
        event_shape: shape of the data.
        mask: a file, an image or a ``.npy`` array, white or 1 where a value is measured and black or 0 elsewhere; None
            to measure the first half of the values, of images the upper half.
    Raises:
        ValueError: if there is no such file, or it does not fit.
    """
    if mask is None:
        count = torch.Size(event_shape)[-2:].numel()
        return Mask(event_shape, (torch.arange(count) < count // 2).reshape(event_shape[-2:]))
    found = read(Path(mask), "guidance.operator.mask", (1, *event_shape[1:]))
    if found.dtype == torch.uint8 and int(found.max()) == 255:
        found = found / 255
    return Mask(event_shape, found)


def read(path: Path, key: str, event_shape: tuple[int, ...]) -> Tensor:
    """An image as uint8 ``[C, H, W]``, or an array: uint8 as it is, other numbers as float32.

    Args:
        path: of the file.
        key: its name in messages.
        event_shape: of the data, of which an image has the channels.
    Raises:
        ValueError: in one sentence.
    """
    if not path.is_file():
        raise ValueError(f"{key} must be a file (got {path}): correct its name")
    if path.suffix == ".npy":
        try:
            with path.open("rb") as file:
                array = read_array(file, path.stat().st_size)
        except ValueError as error:
            raise ValueError(f"{key} must be a .npy array of numbers (got {path}): {error}") from error
        if array.dtype.kind not in "buif":
            raise ValueError(f"{key} must be an array of real numbers (got {array.dtype}): convert it")
        return torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    channels = event_shape[0] if len(event_shape) == 3 else 0
    if channels not in (1, 3):
        raise ValueError(f"{key} must be a .npy file for data of shape {tuple(event_shape)} (got {path})")
    image = decode(path.read_bytes(), str(path), channels=1 if channels == 1 else 3)
    return torch.from_numpy(channels_first(np.array(image)))
