"""Reads measurements and masks from files, for ``guidance=measurement`` on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optcov.data.decode import channels_first, decode
from optcov.data.files import is_image
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
    count: int = 16,
) -> MeasurementGuidance:
    """Make the guidance towards a measurement in a file, or to each of those in a folder.

    Args:
        denoiser: the mean network.
        num_classes: K, the number of classes of the data; labels, if any, are passed to the network.
        operator: makes A from the shape of the data.
        measurement: an image, whose grey levels are mapped to the network's range, or a ``.npy`` array of bytes (grey
            levels) or of floats in that range; or a folder of such files, which are taken in the order of their names.
        noise: the standard deviation of its noise in that range; on [-1, 1] this is twice the value on [0, 1].
        estimate, solver_steps: as in `MeasurementGuidance`.
        count: number of samples for each file of a folder; all samples are for a single file.
    Raises:
        ValueError: naming the file, if it does not exist, cannot be read or does not fit.
    """
    if measurement is None:
        raise ValueError(
            "guidance.measurement must be a file (got none): give guidance.measurement=FILE, an image or a .npy array, "
            "or a folder of them"
        )
    path, made = Path(measurement), operator(denoiser.data_shape)
    several = path.is_dir()
    files = _files(path) if several else [path]
    rows = []
    for file in files:
        y = read(file, "guidance.measurement", denoiser.data_shape)
        if y.dtype == torch.uint8:
            y = denoiser.data_range.from_unit(y[None].float() / 127.5 - 1)[0]
        rows.append(made.accept(y, f"y in {file}"))
        if several and len(rows[-1]) != 1:
            raise ValueError(f"y in {file} must be one measurement (got {len(rows[-1])}): split the file")
    return MeasurementGuidance(
        denoiser,
        num_classes,
        operator=made,
        y=torch.cat(rows),
        noise=noise,
        estimate=estimate,
        solver_steps=solver_steps,
        count=count if several else None,
        names=[file.name for file in files],
    )


def _files(folder: Path) -> list[Path]:
    """The images and arrays in a folder, by name, without its subfolders."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and (is_image(path.name) or _is_array(path)))
    if not found:
        raise ValueError(f"guidance.measurement must be a folder with images or .npy arrays (got {folder}): add some")
    return found


def _is_array(path: Path) -> bool:
    return path.suffix == ".npy" and not path.name.startswith(".")


def inpaint(event_shape: tuple[int, ...], mask: str | None = None) -> Mask:
    """Make the operator for inpainting.

    Args:
        event_shape: shape of the data.
        mask: a file, either an image or a ``.npy`` array: white or 1 where a value is measured, black or 0 elsewhere.
            None to measure the first half of the values, which for images is the upper half.
    Raises:
        ValueError: if there is no such file, or its shape does not fit.
    """
    if mask is None:
        count = torch.Size(event_shape)[-2:].numel()
        return Mask(event_shape, (torch.arange(count) < count // 2).reshape(event_shape[-2:]))
    found = read(Path(mask), "guidance.operator.mask", (1, *event_shape[1:]))
    if found.dtype == torch.uint8 and int(found.max()) == 255:
        found = found / 255
    return Mask(event_shape, found)


def read(path: Path, key: str, event_shape: tuple[int, ...]) -> Tensor:
    """Read an image as uint8 ``[C, H, W]``, or an array: uint8 stays as it is, other numbers become float32.

    Args:
        path: path of the file.
        key: name of the setting in messages.
        event_shape: shape of the data, which gives the number of channels of an image.
    Raises:
        ValueError: if the file is missing, damaged, or of another kind.
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
