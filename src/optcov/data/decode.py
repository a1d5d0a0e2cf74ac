"""Converts image files to arrays: grey or RGB from any mode that Pillow reads, cropped, and resized with antialiasing.

All images end as 8-bit levels, as samples and their scores do.  The values of deeper images are scaled by the range
from black to white that their file declares, and rounded.  Transparent images are composited over a background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from optcov.data.records import Pixels
from optcov.data.untrusted import open_image

Box = tuple[int, int, int, int]  # left, top, right, bottom
Resample = Literal["box", "bilinear", "bicubic", "lanczos"]

_BITS, _LOWEST, _HIGHEST = 258, 340, 341  # tags of TIFF 6.0: BitsPerSample, SMinSampleValue, SMaxSampleValue


def decode(
    encoded: bytes,
    name: str,
    channels: Literal[1, 3] = 3,
    value_range: Sequence[float] | None = None,
    background: str = "white",
) -> Image.Image:
    """Decode an image, turn it upright, and convert it to grey or RGB.

    Args:
        encoded: the content of an image file.
        name: name of the image, for messages.
        channels: 1 for grey, 3 for RGB.
        value_range: the values of black and white in 16-bit, 32-bit and float images; None for those that the file
            declares, or else the whole range of 16 bits and [0, 1] for floats.
        background: the colour that shows through transparent pixels, as a CSS name or ``#rrggbb``.
    Raises:
        CorruptImageError: naming the image, if it cannot be decoded.
        ValueError: naming the image, if its values lie outside their range, or no range is known.
    """
    opened = open_image(encoded, name)
    image: Image.Image = ImageOps.exif_transpose(opened)
    transparent = image.has_transparency_data
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = Image.fromarray(to_levels(values, value_range or _declared_range(opened), name))
        if transparent:  # 16-bit grey images mark transparency by one of their levels
            image.putalpha(Image.fromarray(values != opened.info["transparency"]))
    if transparent:
        canvas = Image.new("RGBA", image.size, background)
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("L" if channels == 1 else "RGB")


def to_levels(values: NDArray[Any], value_range: Sequence[float] | None, name: str) -> Pixels:
    """Round numbers to the nearest of 256 levels from black to white.

    Args:
        values: integers or floats, any shape.
        value_range: the values of black and white; None if they are not known.
        name: name of the image, for messages.
    Raises:
        ValueError: naming the image, if a value lies outside the range, or the range is not known.
    """
    found = (float(values.min()), float(values.max()))
    if value_range is None or not (value_range[0] <= found[0] and found[1] <= value_range[1]):  # nor NaN
        expected = "" if value_range is None else f", outside of {value_range[0]:g} to {value_range[1]:g}"
        raise ValueError(
            f"{name} has values from {found[0]:g} to {found[1]:g}{expected}: say which are black and white, such as "
            "data.value_range=[0,255]"
        )
    low, high = value_range
    return ((values.astype(np.float64) - low) * (255 / (high - low))).round().astype(np.uint8)


def _declared_range(opened: Any) -> tuple[float, float] | None:
    """The values of black and white that an image file declares; None if it declares none."""
    tags = getattr(opened, "tag_v2", {})
    if _LOWEST in tags and _HIGHEST in tags:
        low, high = (float(np.ravel(tags[tag])[0]) for tag in (_LOWEST, _HIGHEST))
        return (low, high) if low < high else None
    if opened.mode.startswith("I;16"):
        return 0.0, 2.0 ** int(np.ravel(tags.get(_BITS, 16))[0]) - 1
    if opened.mode == "F":
        return 0.0, 1.0
    return None if tags else (0.0, 65_535.0)  # Pillow scales PNG and PNM deeper than 8 bits to 16 bits


def crop_and_resize(image: Image.Image, box: Box, size: tuple[int, int], resample: Resample) -> Pixels:
    """Cut out a box and resize it.

    Args:
        image: grey or RGB.
        box: left, top, right, bottom in pixels, within the image.
        size: height and width of the result in pixels.
        resample: the filter, which Pillow widens when shrinking (antialiasing).
    Returns:
        uint8 ``[C, *size]``.
    """
    resized = image.crop(box).resize(size[::-1], Image.Resampling[resample.upper()])
    return channels_first(np.asarray(resized))


def channels_first(pixels: Pixels) -> Pixels:
    """Rearrange ``[H, W]`` or ``[H, W, C]`` to ``[C, H, W]``."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
