"""Image files of any size and mode, of which the central part is resized, in grey or colour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from optcov.data.base import Split
from optcov.data.decode import Box, Resample, crop_and_resize, decode
from optcov.data.images import ImageData, held_out
from optcov.data.records import CorruptImageError, Pixels, Records, Selection


@dataclass(eq=False)
class EncodedImages(ImageData):
    """The central part of each image, resized.

    A subclass provides the images (`pictures`) and, for data that come with splits, the split of each (`splits`).

    Args:
        root: where the images are.
        image_size: side of the result in pixels, or its height and width.
        crop: side of the central square in pixels of the source, or its height and width; None for the largest part
            with the aspect ratio of ``image_size``.
        resample: the filter used for resizing.
        channels: 1 for grey, 3 for RGB.
        value_range: the values of black and white in 16-bit and float images; None for those that each file declares.
        background: the colour behind transparent pixels, as a CSS name or ``#rrggbb``.
        val_size, test_size: number of images held out for validation and testing; the random choice is fixed.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if ``image_size``, ``crop`` or ``limit`` is below 1, or ``value_range`` or ``background`` is
            invalid.
    """

    _: KW_ONLY
    image_size: int | Sequence[int] = 64
    crop: int | Sequence[int] | None = None
    resample: Resample = "bicubic"
    channels: Literal[1, 3] = 3
    value_range: Sequence[float] | None = None
    background: str = "white"
    val_size: int = 0
    test_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size = sides("image_size", self.image_size)
        self.cropped = None if self.crop is None else sides("crop", self.crop)
        self.black_and_white = check_value_range(self.value_range)
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(
                f"data.background must be a colour (got {self.background}): give a CSS name such as white, or #rrggbb"
            ) from None

    @abstractmethod
    def pictures(self) -> Pictures:
        """All images of all splits.

        Raises:
            ValueError: naming the place, if there are none.
        """

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def preprocessing(self) -> dict[str, Any]:
        settings = {"image_size": self.size, "crop": self.cropped, "resample": self.resample}
        colours = {"channels": self.channels, "value_range": self.black_and_white, "background": self.background}
        return settings | colours | {"val_size": self.val_size, "test_size": self.test_size}

    def records(self, split: Split) -> Records:
        pictures = self.pictures()
        every = Prepared(pictures, self)
        if not pictures.splits:
            return Selection(every, held_out(len(every), self.val_size, self.test_size, split))
        if self.val_size or self.test_size:
            raise ValueError(
                f"data.val_size and data.test_size must be 0 for data.root = {self.path}, which comes with splits "
                f"(got {self.val_size} and {self.test_size})"
            )
        return Selection(every, [i for i, theirs in enumerate(pictures.splits) if theirs == split])

    def prepare_image(self, encoded: bytes, name: str) -> Pixels:
        """Decode an image file to uint8 ``[C, H, W]``.

        Args:
            encoded: the content of the file.
            name: name of the image, for messages.
        Raises:
            CorruptImageError: if it cannot be decoded, or is smaller than ``crop``.
            ValueError: if its values have no known range.
        """
        image = decode(encoded, name, self.channels, self.black_and_white, self.background)
        box = central_box(image.width, image.height, self.size, self.cropped, name)
        return crop_and_resize(image, box, self.size, self.resample)


class Pictures(ABC):
    """Image files with their classes and splits.

    Attributes:
        labels: class of each image, int64 ``[n]``; None if there are no classes.
        classes: names of the classes; None if they have no names.
        splits: split of each image; empty if the data come without splits.
    """

    labels: NDArray[np.int64] | None = None
    classes: list[str] | None = None
    splits: Sequence[Split] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, str]:
        """Read the content of a file, and its name for messages.

        Raises:
            CorruptImageError: if it cannot be read.
        """


class Prepared(Records):
    """Image files, decoded according to the settings of a source."""

    def __init__(self, pictures: Pictures, source: EncodedImages) -> None:
        self.pictures, self.source = pictures, source
        self.labels, self.classes = pictures.labels, pictures.classes

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int) -> Pixels:
        return self.source.prepare_image(*self.pictures.read(index))


def central_box(width: int, height: int, size: tuple[int, int], crop: tuple[int, int] | None, name: str) -> Box:
    """The central part of an image, which is kept.

    Args:
        width, height: size of the image in pixels.
        size: height and width of the result, which give the aspect ratio of the part.
        crop: height and width of the part in pixels; None for the largest part.
        name: name of the image, for messages.
    Raises:
        CorruptImageError: if the image is smaller than ``crop``.
    """
    if crop is None:
        scale = min(height / size[0], width / size[1])
        crop = (round(size[0] * scale), round(size[1] * scale))
    if crop[0] > height or crop[1] > width:
        given = crop[0] if crop[0] == crop[1] else list(crop)
        raise CorruptImageError(f"{name} has {width} x {height} pixels, but data.crop = {given}")
    left, top = (width - crop[1]) // 2, (height - crop[0]) // 2
    return left, top, left + crop[1], top + crop[0]


def sides(key: str, pixels: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from a setting that may be the side of a square.

    Raises:
        ValueError: for a side below one pixel, or a list that does not have two sides.
    """
    given = [pixels, pixels] if isinstance(pixels, int) else list(pixels)
    if len(given) != 2:
        raise ValueError(f"data.{key} must be a side, or height and width (got {given}): give, say, 32 or [24,48]")
    for side in given:
        check_side(key, side)
    return given[0], given[1]


def check_side(key: str, pixels: int) -> None:
    """Raise ValueError for a side below one pixel."""
    if pixels < 1:
        raise ValueError(f"data.{key} must be at least 1 pixel (got {pixels})")


def check_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the values of black and white as two numbers; None if files declare them.

    Raises:
        ValueError: unless there are two numbers, the smaller one first.
    """
    if value_range is None:
        return None
    given = list(value_range)
    if len(given) != 2 or not given[0] < given[1]:
        raise ValueError(
            f"data.value_range must be black and white (got {given}): give two rising numbers such as [0,255], or null"
        )
    return float(given[0]), float(given[1])
