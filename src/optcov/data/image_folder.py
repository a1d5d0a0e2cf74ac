"""Any folder or zip archive of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from optcov.data.base import Split
from optcov.data.decode import Resample, crop_and_resize, decode
from optcov.data.files import Files, files_in
from optcov.data.images import ImageData, held_out
from optcov.data.records import CorruptImageError, Pixels, Records, Selection


@dataclass(eq=False)
class ImageFolderData(ImageData):
    """The central square of each image, resized; subfolders are searched, but their names are not used as classes.

    Args:
        root: folder or zip archive.
        image_size: side of the result in pixels.
        crop: side of the central square in pixels of the source; None for the largest.
        resample: the filter of the resize.
        channels: 1 for grey, 3 for RGB.
        val_size, test_size: images held out for validation and testing, a fixed random choice.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if ``image_size``, ``crop`` or ``limit`` is below 1.
    """

    name = "image_folder"

    _: KW_ONLY
    image_size: int = 64
    crop: int | None = None
    resample: Resample = "bicubic"
    channels: Literal[1, 3] = 3
    val_size: int = 0
    test_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("image_size", self.image_size)
        if self.crop is not None:
            check_size("crop", self.crop)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.image_size, self.image_size)

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
        settings = {"image_size": self.image_size, "crop": self.crop, "resample": self.resample}
        return {**settings, "channels": self.channels}

    def records(self, split: Split) -> Records:
        files = files_in(self.origin())
        names = files.images()
        if not names:
            raise ValueError(f"data.root = {self.path} has no images: give a folder or a zip archive of images")
        every = CroppedFiles(files, names, self.preprocessing())
        return Selection(every, held_out(len(every), self.val_size, self.test_size, split))


class CroppedFiles(Records):
    """The central square of each image file."""

    def __init__(self, files: Files, names: Sequence[str], preprocessing: dict[str, Any]) -> None:
        self.files, self.names, self.preprocessing = files, names, preprocessing

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Pixels:
        name, settings = self.names[index], self.preprocessing
        image = decode(self.files.read(name), f"{name} in {self.files.place}", settings["channels"])
        side = settings["crop"] or min(image.size)
        if side > min(image.size):
            raise CorruptImageError(
                f"{name} in {self.files.place} has {image.width} x {image.height} pixels, but data.crop = {side}"
            )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return crop_and_resize(image, box, settings["image_size"], settings["resample"])


def check_size(key: str, pixels: int) -> None:
    """Raise ValueError for a side below one pixel."""
    if pixels < 1:
        raise ValueError(f"data.{key} must be at least 1 pixel (got {pixels})")
