"""Any folder or zip archive of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from optcov.data.base import Split
from optcov.data.decode import Resample, crop_and_resize, decode
from optcov.data.files import Files, files_in
from optcov.data.images import ImageData, held_out
from optcov.data.records import CorruptImageError, Pixels, Records, Selection


class ImageFolderData(ImageData):
    """A central square of each image, resized; subfolders are searched, their names mean nothing.

    Args:
        root: the folder or zip archive.
        image_size: side of the result in pixels.
        crop: side of the central square in pixels of the source; None for the largest.
        resample: the filter of the resize.
        channels: 1 for grey, 3 for RGB.
        val_size, test_size: images held out for validation and testing, a fixed random choice.
        cache_dir, limit, random_flip, skip_corrupt, batch_size, seed: as in :class:`ImageData`.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        image_size: int = 64,
        crop: int | None = None,
        resample: Resample = "bicubic",
        channels: Literal[1, 3] = 3,
        val_size: int = 0,
        test_size: int = 0,
        limit: int | None = None,
        random_flip: bool = False,
        skip_corrupt: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__("image_folder", root, cache_dir, limit, random_flip, skip_corrupt, batch_size, seed)
        check_size("image_size", image_size)
        if crop is not None:
            check_size("crop", crop)
        self.image_size, self.crop, self.resample, self.channels = image_size, crop, resample, channels
        self.val_size, self.test_size = val_size, test_size
        self.shape = (channels, image_size, image_size)

    def origin(self) -> Path:
        if not self.root.exists():
            raise ValueError(
                f"data.root = {self.root} does not exist (looked for {self.root.absolute()}): "
                "give a folder or a zip archive of images"
            )
        return self.root

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
            raise ValueError(f"data.root = {self.root} holds no images: give a folder or a zip archive of images")
        every = CroppedFiles(files, names, self.preprocessing())
        return Selection(every, held_out(len(every), self.val_size, self.test_size, split))


class CroppedFiles(Records):
    """Image files, the central square of each."""

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
                f"{name} in {self.files.place} has {image.width} x {image.height} pixels, less than data.crop = {side}"
            )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return crop_and_resize(image, box, settings["image_size"], settings["resample"])


def check_size(key: str, pixels: int) -> None:
    """Refuse a side that is no number of pixels."""
    if pixels < 1:
        raise ValueError(f"data.{key} = {pixels} is no number of pixels: give at least 1")
