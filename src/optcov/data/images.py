"""Image sets that are decoded once: a split is found, decoded into the cache, and mapped from there."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optcov.data.base import DataModule, Split
from optcov.data.cache import PixelCache, StoredImages
from optcov.data.records import Records, Selection, evenly_spaced


class ImageData(DataModule):
    """Images of one shape from files.

    A subclass says where its images are (:meth:`origin`), what identifies them without decoding any
    (:meth:`fingerprint`), how they are made (:meth:`preprocessing`), and opens them (:meth:`records`).

    Args:
        name: of the data set.
        root: folder or archive.
        cache_dir: where decoded images are kept.
        limit: at most this many images of each split, evenly spaced over it.
        random_flip: mirror half of the training images, drawn anew in each step.
        skip_corrupt: leave out images that can not be decoded.
        batch_size, seed: as in :class:`DataModule`.
    """

    shape: tuple[int, int, int]

    def __init__(
        self,
        name: str,
        root: str,
        cache_dir: str,
        limit: int | None = None,
        random_flip: bool = False,
        skip_corrupt: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, random_flip)
        if limit is not None and limit < 1:
            raise ValueError(f"data.limit = {limit} leaves no images: give at least 1, or null for all")
        self.name, self.root, self.cache = name, Path(root).expanduser(), PixelCache(Path(cache_dir).expanduser())
        self.limit, self.skip_corrupt = limit, skip_corrupt
        self._stored: dict[Split, StoredImages] = {}

    @abstractmethod
    def origin(self) -> Path:
        """The folder or archive in which the images were found.

        Raises:
            ValueError: saying where they were looked for and how to get them.
        """

    @abstractmethod
    def fingerprint(self, split: Split) -> dict[str, Any]:
        """What determines the images of a split as they lie there, as JSON; quick."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What is done to each image, as JSON."""

    @abstractmethod
    def records(self, split: Split) -> Records:
        """The images of a split, ready to be decoded."""

    def stored(self, split: Split) -> StoredImages:
        """A split in the cache; the first process that asks decodes it.

        Raises:
            ValueError: if it can not be found, read, decoded or kept.
        """
        if split not in self._stored:
            origin = self.origin()
            try:
                fingerprint = self.fingerprint(split)
            except OSError as error:
                raise ValueError(f"data.root = {self.root} can not be read: {error}") from error
            identity = {
                "split": split,
                "source": fingerprint,
                "preprocessing": self.preprocessing(),
                "limit": self.limit,
                "skip_corrupt": self.skip_corrupt,
            }
            name = f"{self.name}-{split}"
            self._stored[split] = self.cache.open_or_build(
                name, identity, str(origin), lambda: self._selected(split), self.shape, self.skip_corrupt
            )
        return self._stored[split]

    def _selected(self, split: Split) -> Records:
        try:
            records = self.records(split)
        except OSError as error:
            raise ValueError(f"data.root = {self.root} can not be read: {error}") from error
        return Selection(records, evenly_spaced(len(records), self.limit))

    def load(self, split: Split) -> Tensor:
        return self.stored(split).images

    def labels(self, split: Split) -> Tensor:
        labels = self.stored(split).labels
        return super().labels(split) if labels is None else labels

    def identity(self) -> dict[str, Any]:
        """The checksum of the training images: what ``root`` holds, wherever it is."""
        return {"train_sha256": self.stored("train").manifest["sha256"]}


def held_out(count: int, val_size: int, test_size: int, split: Split) -> list[int]:
    """Indices of a split of data that come without any: a fixed random part for validation and one for testing.

    Args:
        count: of all images.
        val_size, test_size: images held out.
        split: which one is wanted.
    Returns:
        Sorted indices.
    Raises:
        ValueError: if nothing is left for training.
    """
    if val_size < 0 or test_size < 0 or val_size + test_size >= count:
        raise ValueError(
            f"data.val_size = {val_size} and data.test_size = {test_size} leave nothing of {count} images to train on: "
            "give non-negative numbers that sum to less"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = {
        "val": order[:val_size],
        "test": order[val_size : val_size + test_size],
        "train": order[val_size + test_size :],
    }
    return sorted(parts[split].tolist())
