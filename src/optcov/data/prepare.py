"""Does the slow part of a data set before any job uses it: finds or downloads it, decodes it and checks it."""

from __future__ import annotations

import time

from optcov.data.base import DataSource, Split
from optcov.data.images import ImageData

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def prepare(source: DataSource) -> list[str]:
    """Fill the cache for every split of the data; jobs with the same settings then open it at once.

    Args:
        source: the data; only data read from files have anything to prepare.
    Returns:
        A line for each split: where it is, how many images it has, and how long it took.
    Raises:
        ValueError: if the training split cannot be found, read or stored.
    """
    if not isinstance(source, ImageData):
        return [f"{type(source).__name__} has nothing to prepare"]
    lines = []
    for split in SPLITS:
        started = time.monotonic()
        try:
            stored = source.stored(split)
        except ValueError as error:
            if split == "train":
                raise
            lines.append(f"{split}: none ({error})")
            continue
        seconds = time.monotonic() - started
        lines.append(f"{split}: {stored.manifest['count']} images in {stored.folder} ({seconds:.1f} s)")
    return lines
