"""Any folder or zip archive of images; the folders in it are classes, and may be splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import ImageColor

from optcov.data.base import Split
from optcov.data.decode import Box, Resample, crop_and_resize, decode
from optcov.data.files import Files, files_in
from optcov.data.images import ImageData, held_out
from optcov.data.records import CorruptImageError, Pixels, Records, Selection

SPLITS: Mapping[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(eq=False)
class ImageFolderData(ImageData):
    """The central part of each image, resized.

    Where every image lies in one of several folders, these are its classes, in the order of their names.  Folders
    ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` above them are splits.

    Args:
        root: folder or zip archive.
        image_size: side of the result in pixels, or its height and width.
        crop: side of the central square in pixels of the source, or height and width; None for the largest part of the
            shape of ``image_size``.
        resample: the filter of the resize.
        channels: 1 for grey, 3 for RGB.
        value_range: black and white of 16-bit and float images; None for what each file declares.
        background: the colour behind transparent pixels, by its CSS name or as ``#rrggbb``.
        val_size, test_size: images held out for validation and testing, a fixed random choice.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if ``image_size``, ``crop`` or ``limit`` is below 1, or ``value_range`` or ``background`` is none.
    """

    name = "image_folder"

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

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def origin(self) -> Path:
        if not self.path.exists():
            raise ValueError(
                f"data.root = {self.path} does not exist (looked for {self.path.absolute()}): "
                "give a folder or a zip archive of images"
            )
        return self.path

    def fingerprint(self, split: Split) -> dict[str, Any]:
        held = {"val_size": self.val_size, "test_size": self.test_size}
        return {"files": files_in(self.origin()).fingerprint(), **held}

    def preprocessing(self) -> dict[str, Any]:
        settings = {"image_size": self.size, "crop": self.cropped, "resample": self.resample}
        colours = {"channels": self.channels, "value_range": self.black_and_white, "background": self.background}
        return settings | colours

    def records(self, split: Split) -> Records:
        files = files_in(self.origin())
        tree = Tree(files.images())
        if not tree.names:
            raise ValueError(f"data.root = {self.path} has no images: give a folder or a zip archive of images")
        every = CroppedFiles(files, tree, self.preprocessing())
        if not tree.splits:
            return Selection(every, held_out(len(every), self.val_size, self.test_size, split))
        if self.val_size or self.test_size:
            raise ValueError(
                f"data.val_size and data.test_size must be 0 for data.root = {self.path}, which has folders for its "
                f"splits (got {self.val_size} and {self.test_size})"
            )
        return Selection(every, [i for i, theirs in enumerate(tree.splits) if theirs == split])


class Tree:
    """What the folders of images say.

    Args:
        names: relative paths, sorted.
    Attributes:
        names: the same.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        paths = _without_wrapping([PurePosixPath(name).parts for name in names])
        tops = {path[0] for path in paths if len(path) > 1}
        has_splits = "train" in tops and tops <= SPLITS.keys() and all(len(path) > 1 for path in paths)
        self.splits = [SPLITS[path[0]] for path in paths] if has_splits else []
        self._inner = [path[1:] for path in paths] if has_splits else paths

    @cached_property
    def classes(self) -> list[str]:
        """The folders that hold all of the images, sorted; empty if there are not several."""
        found = sorted({path[0] for path in self._inner if len(path) > 1})
        return found if len(found) > 1 and all(len(path) > 1 for path in self._inner) else []

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The class of each image; None where there are none."""
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[path[0]] for path in self._inner], np.int64) if number else None


def _without_wrapping(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Relative paths without the folders in which all of them lie."""
    while paths and all(len(path) > 1 and path[0] == paths[0][0] for path in paths) and paths[0][0] not in SPLITS:
        paths = [path[1:] for path in paths]
    return paths


class CroppedFiles(Records):
    """The central part of each image file."""

    def __init__(self, files: Files, tree: Tree, preprocessing: dict[str, Any]) -> None:
        self.files, self.names, self.preprocessing = files, tree.names, preprocessing
        self.labels, self.classes = tree.labels, tree.classes or None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Pixels:
        name, settings = self.names[index], self.preprocessing
        place = f"{name} in {self.files.place}"
        colours = (settings["channels"], settings["value_range"], settings["background"])
        image = decode(self.files.read(name), place, *colours)
        box = central_box(image.width, image.height, settings["image_size"], settings["crop"], place)
        return crop_and_resize(image, box, settings["image_size"], settings["resample"])


def central_box(width: int, height: int, size: tuple[int, int], crop: tuple[int, int] | None, name: str) -> Box:
    """The part of an image to keep.

    Args:
        width, height: of the image.
        size: height and width of the result, whose shape the part has.
        crop: height and width of the part in pixels; None for the largest.
        name: of the image, for messages.
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
        ValueError: for a side below one pixel, or other than two of them.
    """
    given = [pixels, pixels] if isinstance(pixels, int) else list(pixels)
    if len(given) != 2:
        raise ValueError(f"data.{key} must be a side, or height and width (got {given}): give such as 32 or [24,48]")
    for side in given:
        check_side(key, side)
    return given[0], given[1]


def check_side(key: str, pixels: int) -> None:
    """Raise ValueError for a side below one pixel."""
    if pixels < 1:
        raise ValueError(f"data.{key} must be at least 1 pixel (got {pixels})")


def check_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Black and white as two numbers; None for what files declare.

    Raises:
        ValueError: if there are not two, black first.
    """
    if value_range is None:
        return None
    given = list(value_range)
    if len(given) != 2 or not given[0] < given[1]:
        raise ValueError(f"data.value_range must be black and white (got {given}): give such as [0,255], or null")
    return float(given[0]), float(given[1])
