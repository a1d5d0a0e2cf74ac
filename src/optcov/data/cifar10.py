"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of ten classes, 32 x 32 in colour."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optcov.data.base import Split
from optcov.data.cifar10_layouts import LAYOUTS, SHAPE, Layout, PythonLayout, find_layout
from optcov.data.download import download
from optcov.data.images import ImageData
from optcov.data.records import Records, Selection

log = logging.getLogger(__name__)

COUNTS = {"train": 50_000, "test": 10_000}


class CIFAR10Data(ImageData):
    """Colour images ``(3, 32, 32)`` with labels.

    Args:
        root: folder or archive, in any of the forms of :mod:`optcov.data.cifar10_layouts`.
        download: get the official archive into ``root`` where no form is found.
        mirrors: addresses of the official archive, tried in turn.
        checksums: MD5 of the official archives by name; an archive that is not named is not checked.
        val_size: images held out for validation, the last of the training files (which are in random order).
        cache_dir, limit, random_flip, skip_corrupt, batch_size, seed: as in :class:`ImageData`.
    """

    shape = SHAPE

    def __init__(
        self,
        root: str,
        cache_dir: str,
        download: bool = False,
        mirrors: Sequence[str] = (),
        checksums: Mapping[str, str] | None = None,
        val_size: int = 0,
        limit: int | None = None,
        random_flip: bool = True,
        skip_corrupt: bool = False,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__("cifar10", root, cache_dir, limit, random_flip, skip_corrupt, batch_size, seed)
        if val_size < 0:
            raise ValueError(f"data.val_size = {val_size} is negative: give 0 for no validation split")
        self.download, self.mirrors, self.checksums = download, mirrors, dict(checksums or {})
        self.val_size = val_size
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The form that was found, after a download where one is asked for."""
        if self._layout is None:
            self._layout = find_layout(self.root)
        if self._layout is None and self.download:
            archive = self.root / PythonLayout.archive
            download(self.mirrors, archive, self.checksums.get(archive.name))
            self._layout = find_layout(self.root)
        if self._layout is None:
            forms = ", ".join(layout.looked_for for layout in LAYOUTS)
            raise ValueError(
                f"data.root = {self.root} holds no CIFAR-10 (looked in {self.root.absolute()} for {forms}): "
                "set data.root or OPTCOV_DATA to where it is, or data.download=true to get it (170 MB)"
            )
        return self._layout

    @property
    def num_classes(self) -> int:
        return 10

    def origin(self) -> Path:
        return self.layout.place

    def fingerprint(self, split: Split) -> dict[str, Any]:
        files = self.layout.fingerprint("test" if split == "test" else "train")
        return {"layout": type(self.layout).__name__, "files": files, "val_size": self.val_size}

    def preprocessing(self) -> dict[str, Any]:
        return {}

    def records(self, split: Split) -> Records:
        source: Split = "test" if split == "test" else "train"
        records = self.layout.records(source, self.checksums)
        if len(records) != COUNTS[source]:
            log.warning("%s holds %d %s images, CIFAR-10 has %d", self.origin(), len(records), source, COUNTS[source])
        if split == "test":
            return records
        first_val = len(records) - self.val_size
        if first_val < 1:
            raise ValueError(f"data.val_size = {self.val_size} leaves nothing of {len(records)} images to train on")
        if split == "val" and self.val_size == 0:
            raise ValueError(
                "data.val_size = 0 leaves CIFAR-10 without a validation split: give a number, such as 5000"
            )
        return Selection(records, range(first_val) if split == "train" else range(first_val, len(records)))
