"""Images from files: a split is located, decoded into the cache once, and then memory-mapped from there."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from optcov.data.base import DataSource, Split
from optcov.data.cache import PixelCache, StoredImages
from optcov.data.records import Records, Selection, evenly_spaced


@dataclass(eq=False)
class ImageData(DataSource):
    """Images of one shape from files.

    A subclass locates its images (`origin`), identifies them without decoding any (`fingerprint`), describes their
    preprocessing (`preprocessing`), and opens them (`records`).

    Args:
        root: folder or archive.
        cache_dir: folder in which decoded images are kept.
        limit: largest number of images to use from each split, evenly spaced over it; None for all.
        skip_corrupt: leave out images that cannot be decoded.
        batch_size, seed, random_flip: as in `DataSource`.
    Attributes:
        name: name of the data set, used in the names of its cache entries.
        path: ``root`` with the home directory expanded.
    Raises:
        ValueError: if ``limit`` is below 1.
    """

    name: ClassVar[str]

    root: str
    cache_dir: str
    _: KW_ONLY
    limit: int | None = None
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit must be at least 1 (got {self.limit}): give null for all images")
        self._stored: dict[Split, StoredImages] = {}
        self.path, self.cache = Path(self.root).expanduser(), PixelCache(Path(self.cache_dir).expanduser())

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of each image."""

    @abstractmethod
    def origin(self) -> Path:
        """The folder or archive in which the images were found.

        Raises:
            ValueError: naming the places searched and how to get the images.
        """

    @abstractmethod
    def fingerprint(self, split: Split) -> dict[str, Any]:
        """What determines the stored images of a split, as JSON; must take well under a second."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What is done to each image before it is stored, as JSON."""

    @abstractmethod
    def records(self, split: Split) -> Records:
        """The images of a split, ready to be decoded."""

    def stored(self, split: Split) -> StoredImages:
        """A split in the cache; the first process that asks for it decodes it.

        Raises:
            ValueError: if it cannot be found, read, decoded or stored.
        """
        if split not in self._stored:
            origin = self.origin()
            try:
                fingerprint = self.fingerprint(split)
            except OSError as error:
                raise ValueError(f"data.root = {self.path} cannot be read: {error}") from error
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
            raise ValueError(f"data.root = {self.path} cannot be read: {error}") from error
        return Selection(records, evenly_spaced(len(records), self.limit))

    def load(self, split: Split) -> Tensor:
        return self.stored(split).images

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one image, known without loading any, so that sampling from a finished run needs no data."""
        return self.shape

    def labels(self, split: Split) -> Tensor:
        labels = self.stored(split).labels
        return super().labels(split) if labels is None else labels

    @property
    def num_classes(self) -> int:
        return super().num_classes if self.classes is None else len(self.classes)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, in the order of their numbers; None if they have no names."""
        names: list[str] | None = self.stored("train").manifest["classes"]
        return names

    def identity(self) -> dict[str, Any]:
        """The checksum of the training images, which does not depend on where they are stored."""
        return {"train_sha256": self.stored("train").manifest["sha256"]}


def held_out(count: int, val_size: int, test_size: int, split: Split) -> list[int]:
    """Indices of one split, for data that come without splits; the images held out are a fixed random choice.

    Args:
        count: total number of images.
        val_size, test_size: number of images held out for validation and for testing.
        split: the split to return.
    Returns:
        Sorted indices.
    Raises:
        ValueError: if a size is negative, or nothing is left for training.
    """
    if count and (val_size < 0 or test_size < 0 or val_size + test_size >= count):
        raise ValueError(
            f"data.val_size + data.test_size must be less than the {count} images, and neither may be negative "
            f"(got {val_size} + {test_size})"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = {
        "val": order[:val_size],
        "test": order[val_size : val_size + test_size],
        "train": order[val_size + test_size :],
    }
    return sorted(parts[split].tolist())
