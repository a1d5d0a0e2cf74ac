"""Image files to arrays: any mode that Pillow reads becomes grey or RGB, is cropped, then resized with antialiasing."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from optcov.data.records import CorruptImageError, Pixels

Box = tuple[int, int, int, int]  # left, top, right, bottom
Resample = Literal["box", "bilinear", "bicubic", "lanczos"]

# what Pillow raises for bytes that are not an image, are cut short, or unpack to more than its limit
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(encoded: bytes, name: str, channels: Literal[1, 3] = 3) -> Image.Image:
    """An image, upright, in grey or RGB.

    Grey and palette images are converted, transparency is dropped, 16-bit levels lose their lower byte.

    Args:
        encoded: the content of an image file.
        name: of the image, for messages.
        channels: 1 for grey, 3 for RGB.
    Raises:
        CorruptImageError: naming the image, if it cannot be decoded.
    """
    try:
        opened = Image.open(io.BytesIO(encoded))
        opened.load()
        image: Image.Image = ImageOps.exif_transpose(opened)
    except _DAMAGE as error:
        raise CorruptImageError(f"{name} cannot be decoded ({str(error).splitlines()[0]})") from error
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def crop_and_resize(image: Image.Image, box: Box, size: int, resample: Resample) -> Pixels:
    """Cut out a box and resize it to a square.

    Args:
        image: grey or RGB.
        box: left, top, right, bottom in pixels, within the image.
        size: side of the result in pixels.
        resample: the filter, which Pillow widens when shrinking (antialiasing).
    Returns:
        uint8 ``[C, size, size]``.
    """
    resized = image.crop(box).resize((size, size), Image.Resampling[resample.upper()])
    return channels_first(np.asarray(resized))


def channels_first(pixels: Pixels) -> Pixels:
    """``[H, W]`` or ``[H, W, C]`` to ``[C, H, W]``."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
