"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of ten classes, 32 x 32 in colour."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optcov.data.base import Split
from optcov.data.cifar10_layouts import LAYOUTS, SHAPE, Layout, PythonLayout, find_layout
from optcov.data.download import download
from optcov.data.images import ImageData
from optcov.data.records import Records, Selection

log = logging.getLogger(__name__)

COUNTS = {"train": 50_000, "test": 10_000}


@dataclass(eq=False)
class CIFAR10Data(ImageData):
    """Colour images ``(3, 32, 32)`` with labels.

    Args:
        root: folder or archive, in any layout of `optcov.data.cifar10_layouts`.
        download: download the official archive into ``root`` if no layout is found there.
        mirrors: addresses of the official archive, tried in turn.
        checksums: MD5 of the official archives by name; archives that are not listed are not checked.
        val_size: number of images held out for validation, taken from the end of the training files (which are in
            random order).
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if ``val_size`` is negative, or ``limit`` below 1.
    """

    name = "cifar10"
    shape = SHAPE

    _: KW_ONLY
    download: bool = False
    mirrors: Sequence[str] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    val_size: int = 0
    batch_size: int = 128
    random_flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_size < 0:
            raise ValueError(f"data.val_size must not be negative (got {self.val_size}): give 0 for none")

    @cached_property
    def layout(self) -> Layout:
        """The layout that was found, after a download if requested."""
        layout = find_layout(self.path)
        if layout is None and self.download:
            archive = self.path / PythonLayout.archive
            download(self.mirrors, archive, self.checksums.get(archive.name))
            layout = find_layout(self.path)
        if layout is None:
            layouts = ", ".join(layout.looked_for for layout in LAYOUTS)
            raise ValueError(
                f"data.root = {self.path} does not contain CIFAR-10 (looked in {self.path.absolute()} for {layouts}): "
                "set data.root or OPTCOV_DATA to where it is, or data.download=true to get it (170 MB)"
            )
        return layout

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
            log.warning("%s has %d %s images, but CIFAR-10 has %d", self.origin(), len(records), source, COUNTS[source])
        if split == "test":
            return records
        first_val = len(records) - self.val_size
        if first_val < 1:
            raise ValueError(f"data.val_size must be less than the {len(records)} images (got {self.val_size})")
        if split == "val" and self.val_size == 0:
            raise ValueError("data.val_size must be at least 1 for a validation split of CIFAR-10 (got 0): give 5000")
        return Selection(records, range(first_val) if split == "train" else range(first_val, len(records)))
