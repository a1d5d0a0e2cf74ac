"""The file layouts of CIFAR-10 (Krizhevsky 2009): Python pickles, binary records and parquet tables."""

from __future__ import annotations

import hashlib
import logging
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from optcov.data.base import Split
from optcov.data.decode import channels_first, decode
from optcov.data.files import file_fingerprint
from optcov.data.records import ArrayRecords, CorruptImageError, Pixels, Records
from optcov.data.restricted_pickle import load_arrays
from optcov.data.tables import ParquetTable, Shards
from optcov.data.untrusted import MAX_BYTES, TooLargeError, check_size

log = logging.getLogger(__name__)

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
AGAIN = "delete it and get it again, for example with data.download=true"


class Layout(ABC):
    """CIFAR-10 in one layout, found on disk.

    Attributes:
        looked_for: the file names that `find` looks for, for messages.
        place: the folder or archive that was found.
    """

    looked_for: ClassVar[str]
    place: Path

    @classmethod
    @abstractmethod
    def find(cls, root: Path) -> Self | None:
        """The data in this layout in ``root``, or None if there are none."""

    @abstractmethod
    def paths(self, split: Split) -> list[Path]:
        """The files that hold a split (train or test)."""

    @abstractmethod
    def records(self, split: Split, checksums: Mapping[str, str]) -> Records:
        """The images of a split (train or test) in the order of the files, with labels.

        Args:
            split: train or test.
            checksums: MD5 of the official archives, by name.
        Raises:
            ValueError: naming the file that is missing, damaged, or of the wrong kind.
        """

    def fingerprint(self, split: Split) -> list[str]:
        """Hashes of the files that hold a split."""
        return [file_fingerprint(path) for path in self.paths(split)]


class BatchLayout(Layout):
    """Files of 10,000 images each, in a folder or in the official archive."""

    folder: ClassVar[str]
    archive: ClassVar[str]
    batches: ClassVar[Mapping[str, Sequence[str]]]

    def __init__(self, place: Path) -> None:
        self.place = place

    @classmethod
    def find(cls, root: Path) -> Self | None:
        if root.is_file():
            return cls(root) if cls.names_archive(root.name) else None
        for folder in (root, root / cls.folder):
            if any((folder / name).is_file() for names in cls.batches.values() for name in names):
                return cls(folder)
        return cls(root / cls.archive) if (root / cls.archive).is_file() else None

    @classmethod
    def names_archive(cls, name: str) -> bool:
        """Whether the name of a file given as ``data.root`` is that of this layout's archive."""
        return name == cls.archive

    def paths(self, split: Split) -> list[Path]:
        if not self.place.is_dir():
            return [self.place]
        paths = [self.place / name for name in self.batches[split]]
        for path in paths:
            if not path.is_file():
                raise ValueError(f"data.root: {path} is missing beside the other batches: get CIFAR-10 again")
        return paths

    def records(self, split: Split, checksums: Mapping[str, str]) -> Records:
        names = self.batches[split]
        if self.place.is_dir():
            contents = {path.name: path.read_bytes() for path in self.paths(split)}
        else:
            _check_md5(self.place, checksums.get(self.archive))
            contents = _read_members(self.place, names)
        images, labels = zip(*(self.parse(contents[name], str(self.place / name)) for name in names), strict=True)
        return ArrayRecords(np.concatenate(images).reshape(-1, *SHAPE), np.concatenate(labels))

    @abstractmethod
    def parse(self, content: bytes, name: str) -> tuple[Pixels, NDArray[np.int64]]:
        """Parse a file into images, uint8 ``[n, 3072]`` channel by channel, and their labels."""


class PythonLayout(BatchLayout):
    """The Python version: pickles of ``{b"data": uint8 [n, 3072], b"labels": [n]}``."""

    folder = "cifar-10-batches-py"
    archive = "cifar-10-python.tar.gz"
    batches: ClassVar = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    looked_for = "cifar-10-batches-py/, cifar-10-python.tar.gz"

    @classmethod
    def names_archive(cls, name: str) -> bool:
        return name.endswith((".tar.gz", ".tgz", ".tar")) and name != BinaryLayout.archive

    def parse(self, content: bytes, name: str) -> tuple[Pixels, NDArray[np.int64]]:
        try:
            batch = load_arrays(content)
            images, labels = batch[b"data"], np.asarray(batch[b"labels"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"data.root: {name} is not a CIFAR-10 batch ({error}): {AGAIN}") from error
        is_array = isinstance(images, np.ndarray) and images.dtype == np.uint8
        if not is_array or images.shape != (len(images), PIXELS) or labels.shape != (len(images),):
            raise ValueError(f"data.root: {name} is not a CIFAR-10 batch (its arrays have other shapes): {AGAIN}")
        return images, _labels(labels, name)


class BinaryLayout(BatchLayout):
    """The binary version: records of one label byte and 3072 pixels."""

    folder = "cifar-10-batches-bin"
    archive = "cifar-10-binary.tar.gz"
    batches: ClassVar = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    looked_for = "cifar-10-batches-bin/, cifar-10-binary.tar.gz"

    def parse(self, content: bytes, name: str) -> tuple[Pixels, NDArray[np.int64]]:
        count, rest = divmod(len(content), 1 + PIXELS)
        if rest or not count:
            raise ValueError(
                f"data.root: {name} is truncated ({len(content)} bytes, not a multiple of {1 + PIXELS}): {AGAIN}"
            )
        table = np.frombuffer(content, np.uint8).reshape(count, 1 + PIXELS)
        return table[:, 1:], _labels(table[:, 0], name)


class ParquetLayout(Layout):
    """The layout of the Hugging Face hub: ``train-*.parquet`` and ``test-*.parquet`` with encoded images."""

    looked_for = "train-*.parquet (also in plain_text/ and data/)"

    def __init__(self, place: Path) -> None:
        self.place = place

    @classmethod
    def find(cls, root: Path) -> Self | None:
        folders = (root, root / "plain_text", root / "data")
        return next((cls(folder) for folder in folders if any(folder.glob("*.parquet"))), None)

    def paths(self, split: Split) -> list[Path]:
        shards = sorted(self.place.glob(f"{split}-*.parquet"))
        if not shards:
            raise ValueError(f"data.root: {self.place} has no {split}-*.parquet: get the shards of that split too")
        counted = re.search(r"-of-(\d+)\.parquet$", shards[0].name)
        if counted and len(shards) != int(counted[1]):
            raise ValueError(
                f"data.root: {self.place} has {len(shards)} of {int(counted[1])} {split} shards: get the others too"
            )
        return shards

    def records(self, split: Split, checksums: Mapping[str, str]) -> Records:
        tables = []
        for path in self.paths(split):
            try:
                table = ParquetTable(path)
            except ValueError as error:
                raise ValueError(f"data.root: {error}: {AGAIN}") from error
            if not {"img", "image"} & table.columns.keys() or "label" not in table.columns:
                raise ValueError(
                    f"data.root: {path} must have the columns img and label (got {', '.join(table.columns)}): "
                    "get the files of uoft-cs/cifar10"
                )
            tables.append(table)
        return ParquetRecords(tables)


class ParquetRecords(Records):
    """Rows of parquet tables.

    Args:
        tables: tables with the columns ``img`` or ``image``, and ``label``.
    """

    def __init__(self, tables: Sequence[ParquetTable]) -> None:
        self.shards = Shards(tables)
        self.labels = np.concatenate([_labels(table.values("label"), str(table.path)) for table in tables])

    def __len__(self) -> int:
        return len(self.shards)

    def image(self, index: int) -> Pixels:
        table, row = self.shards.find(index)
        name = f"row {row} of {table.path}"
        image = decode(table.encoded(row, "img" if "img" in table.columns else "image"), name)
        if image.size != (32, 32):
            raise CorruptImageError(f"{name} must be 32 x 32 pixels (got {image.width} x {image.height})")
        return channels_first(np.asarray(image))


LAYOUTS: tuple[type[Layout], ...] = (PythonLayout, BinaryLayout, ParquetLayout)


def find_layout(root: Path) -> Layout | None:
    """The first layout found in ``root`` (the folder of the data, its parent, or an archive); None if there is none."""
    return next((found for layout in LAYOUTS if (found := layout.find(root)) is not None), None)


def _labels(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    if not np.issubdtype(values.dtype, np.integer) or values.min(initial=0) < 0 or values.max(initial=0) > 9:
        raise ValueError(f"data.root: {name} has labels other than 0 to 9: {AGAIN}")
    return values.astype(np.int64)


def _check_md5(archive: Path, expected: str | None) -> None:
    if expected is None:
        return
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise ValueError(
            f"data.root: {archive} ({archive.stat().st_size:,} bytes) is truncated or not the official archive "
            f"(its MD5 is {found}, not {expected}): {AGAIN}"
        )


def _read_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a tar archive by base name, in memory; none is unpacked to disk, so no member can escape."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in names and member.isfile():
                    check_size(member.size, MAX_BYTES)
                    file = tar.extractfile(member)
                    assert file is not None
                    contents[name] = file.read()
                    if len(contents) == len(names):
                        break
    except (tarfile.TarError, zlib.error, EOFError, OSError, TooLargeError) as error:
        raise ValueError(f"data.root: {archive} is truncated or not a tar archive ({error}): {AGAIN}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(f"data.root: {archive} has no {missing[0]}: {AGAIN}")
    return contents
