"""Any folder or zip archive of images; its subfolders are classes, and may be splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from optcov.data.base import Split
from optcov.data.encoded import EncodedImages, Pictures
from optcov.data.files import Files, files_in

SPLITS: Mapping[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(eq=False)
class ImageFolderData(EncodedImages):
    """The central part of each image file, resized.

    If every image lies in one of several folders, these folders are the classes, ordered by name.  Folders ``train``,
    ``val`` (or ``valid``, ``validation``) and ``test`` above them are splits.

    Args:
        root: folder or zip archive.
        image_size, crop, resample, channels, value_range, background, val_size, test_size: as in `EncodedImages`.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if a setting is invalid.
    """

    name = "image_folder"

    def origin(self) -> Path:
        if not self.path.exists():
            raise ValueError(
                f"data.root = {self.path} does not exist (looked for {self.path.absolute()}): "
                "give a folder or a zip archive of images"
            )
        return self.path

    def fingerprint(self, split: Split) -> dict[str, Any]:
        return {"files": files_in(self.origin()).fingerprint()}

    def pictures(self) -> Tree:
        tree = Tree(files_in(self.origin()))
        if not len(tree):
            raise ValueError(f"data.root = {self.path} has no images: give a folder or a zip archive of images")
        return tree


class Tree(Pictures):
    """Image files, with classes and splits from the folders that hold them."""

    def __init__(self, files: Files) -> None:
        self.files, self.names = files, files.images()
        paths = _without_wrapping([PurePosixPath(name).parts for name in self.names])
        tops = {path[0] for path in paths if len(path) > 1}
        if "train" in tops and tops <= SPLITS.keys() and all(len(path) > 1 for path in paths):
            self.splits = [SPLITS[path[0]] for path in paths]
            paths = [path[1:] for path in paths]
        found = sorted({path[0] for path in paths if len(path) > 1})
        if len(found) > 1 and all(len(path) > 1 for path in paths):
            number = {name: i for i, name in enumerate(found)}
            self.classes, self.labels = found, np.array([number[path[0]] for path in paths], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes, str]:
        return self.files.read(self.names[index]), f"{self.names[index]} in {self.files.place}"


def _without_wrapping(paths: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """Relative paths without the leading folders that all of them share."""
    while paths and all(len(path) > 1 and path[0] == paths[0][0] for path in paths) and paths[0][0] not in SPLITS:
        paths = [path[1:] for path in paths]
    return paths
