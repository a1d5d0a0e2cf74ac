"""Images stored as arrays: NumPy's ``.npy`` and ``.npz``, and MNIST's IDX files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optcov.data.array_file import ArrayFile, members
from optcov.data.base import Split
from optcov.data.decode import to_levels
from optcov.data.encoded import check_value_range
from optcov.data.files import file_fingerprint
from optcov.data.images import ImageData, held_out
from optcov.data.records import Pixels, Records, Selection

Axes = Literal["HWC", "CHW"]
Found = tuple[ArrayFile, ArrayFile | None]  # images and their labels

IMAGES = ("arr_0", "images", "image", "x", "X", "data")  # array names that are tried, in this order
LABELS = ("arr_1", "labels", "label", "y", "Y", "targets")
SPLITS: Mapping[Split, Sequence[str]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "t10k"),
}
HOW = "give a .npy, .npz or IDX file of images (also .gz), or a folder of files named by their split"


@dataclass(eq=False)
class ArrayData(ImageData):
    """Images of one size, used without cropping or resizing.

    Args:
        root: a file, or a folder of files named by their split, such as MNIST's four.
        image: name of the array of images in an ``.npz``; None to try the usual names, first by split (``x_train``,
            ``test_images``), then for all images (``arr_0``, ``images``, ``x``).
        label: name of the array of classes in an ``.npz``, or of a file beside a ``.npy``; None to try the usual names.
        axes: ``HWC`` or ``CHW``; None for the order that gives 1 or 3 channels.
        value_range: the values of black and white; None for 0 to 255 (uint8), 0 to 65,535 (uint16) or 0 to 1 (floats).
        val_size, test_size: number of images held out for validation and testing; the random choice is fixed.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if a setting is not valid.
    """

    name = "arrays"

    _: KW_ONLY
    image: str | None = None
    label: str | None = None
    axes: Axes | None = None
    value_range: Sequence[float] | None = None
    val_size: int = 0
    test_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.black_and_white = check_value_range(self.value_range)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._layout[1]

    def origin(self) -> Path:
        return next(iter(self._found.values()))[0].path

    def fingerprint(self, split: Split) -> dict[str, Any]:
        paths = sorted({file.path for found in self._found.values() for file in found if file is not None})
        return {"files": [file_fingerprint(path) for path in paths]}

    def preprocessing(self) -> dict[str, Any]:
        settings = {"image": self.image, "label": self.label, "axes": self.axes}
        return settings | {"value_range": self.black_and_white, "held": [self.val_size, self.test_size]}

    def records(self, split: Split) -> Records:
        found = self._found
        if None in found:
            every = self._rows(*found[None])
            return Selection(every, held_out(len(every), self.val_size, self.test_size, split))
        if self.val_size or self.test_size:
            raise ValueError(
                f"data.val_size and data.test_size must be 0 for data.root = {self.path}, which comes with splits "
                f"(got {self.val_size} and {self.test_size})"
            )
        if split not in found:
            raise ValueError(f"data.root = {self.path} has no {split} split: it has {', '.join(map(str, found))}")
        return self._rows(*found[split])

    def _rows(self, images: ArrayFile, labels: ArrayFile | None) -> Rows:
        channels_first, shape = self._layout
        rows = Rows(images, channels_first, self.black_and_white)
        if tuple(rows.shape) != shape:
            raise ValueError(f"data.root: {images.name} must have images of shape {list(shape)} (got {rows.shape})")
        if labels is not None:
            try:
                rows.labels = classes(labels, len(rows))
            except ValueError:
                if self.label is not None:
                    raise  # without data.label, an array that only has a usual name need not hold classes
        return rows

    @cached_property
    def _found(self) -> dict[Split | None, Found]:
        """Images and labels by split; the key is None if the data come without splits."""
        if self.path.is_file():
            return self._in_file(self.path)
        if not self.path.is_dir():
            raise ValueError(f"data.root = {self.path} does not exist (looked for {self.path.absolute()}): {HOW}")
        images: dict[Split | None, ArrayFile] = {}
        labels: dict[Split | None, ArrayFile] = {}
        for path in sorted(path for path in self.path.iterdir() if is_array(path.name)):
            words = re.split(r"[-_.]", path.name.lower())
            split = next((split for split, names in SPLITS.items() if set(words) & set(names)), None)
            if path.suffix == ".npz":
                (images[split], theirs), *_ = self._in_file(path).values()
                labels |= {} if theirs is None else {split: theirs}
            else:
                (labels if set(words) & set(LABELS) else images).setdefault(split, ArrayFile(path))
        if images.keys() - {None}:
            images.pop(None, None)
        if not images:
            raise ValueError(f"data.root = {self.path} has no arrays of images: {HOW}")
        return {split: (file, labels.get(split)) for split, file in images.items()}

    def _in_file(self, path: Path) -> dict[Split | None, Found]:
        if path.suffix != ".npz":
            beside = None if self.label is None else ArrayFile(path.parent / self.label)
            return {None: (ArrayFile(path), beside)}
        names = members(path)
        for wanted in (self.image, self.label):
            if wanted is not None and wanted not in names:
                raise ValueError(f"data.root: {path} has no array {wanted}: it has {', '.join(names)}")

        def pick(wanted: str | None, usual: Iterator[str]) -> ArrayFile | None:
            name = wanted or next((name for name in usual if name in names), None)
            return None if name is None else ArrayFile(path, name)

        if self.image is None:
            found: dict[Split | None, Found] = {}
            for split in SPLITS:
                images = pick(None, of_split(split, IMAGES))
                if images is not None:
                    found[split] = images, pick(None, of_split(split, LABELS))
            if found:
                return found
        only = pick(self.image, iter(IMAGES)) or (ArrayFile(path, names[0]) if len(names) == 1 else None)
        if only is None:
            raise ValueError(f"data.root: {path} has the arrays {', '.join(names)}: give data.image=NAME")
        return {None: (only, pick(self.label, iter(LABELS)))}

    @cached_property
    def _layout(self) -> tuple[bool | None, tuple[int, int, int]]:
        """Whether channels come first (None if there is no channel axis), and ``(C, H, W)``."""
        file = next(iter(self._found.values()))[0]
        shape = file.header().shape[1:]
        if len(shape) == 2:
            return None, (1, shape[0], shape[1])
        first, last = len(shape) == 3 and shape[0] in (1, 3), len(shape) == 3 and shape[-1] in (1, 3)
        if self.axes is not None:
            first, last = first and self.axes == "CHW", last and self.axes == "HWC"
        if first == last:
            remedy = "give data.axes=HWC or CHW" if first else "give images of 1 or 3 channels"
            raise ValueError(
                f"data.root: {file.name} must hold images [n, H, W], [n, H, W, C] or [n, C, H, W] "
                f"(got {list(file.header().shape)}): {remedy}"
            )
        height, width, channels = shape if last else (*shape[1:], shape[0])
        return first, (channels, height, width)


class Rows(Records):
    """The rows of an array as images, read in order; asking for an earlier row reads from the start again.

    Args:
        file: the array of images.
        channels_first: whether channels come first; None for images without a channel axis.
        value_range: the values of black and white; None to infer them from the type.
    """

    def __init__(self, file: ArrayFile, channels_first: bool | None, value_range: tuple[float, float] | None) -> None:
        self.file, self.channels_first = file, channels_first
        header = file.header()
        self.count = header.shape[0]
        self.shape = self._arranged(np.broadcast_to(np.uint8(0), header.shape[1:])).shape
        kinds = {"u1": None, "b1": (0, 1), "u2": (0, 65_535)}
        self.value_range = value_range or ((0, 1) if header.dtype.kind == "f" else kinds.get(header.dtype.str[1:]))
        self.as_they_are = value_range is None and header.dtype == np.uint8
        self._rows: Iterator[NDArray[Any]] = iter(())
        self._next = self.count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Pixels:
        if index < self._next:
            self._rows, self._next = self.file.rows(), 0
        for row in self._rows:
            self._next += 1
            if self._next > index:
                name = f"row {index} of {self.file.name}"
                return self._arranged(row if self.as_they_are else to_levels(row, self.value_range, name))
        raise IndexError(index)

    def _arranged(self, row: NDArray[Any]) -> NDArray[Any]:
        if self.channels_first is None:
            return row[None]
        return row if self.channels_first else row.transpose(2, 0, 1)


def classes(file: ArrayFile, count: int) -> NDArray[np.int64]:
    """Read the classes of images.

    Args:
        file: an array of integers ``[n]`` or ``[n, 1]``.
        count: number of images.
    Raises:
        ValueError: naming the file, if it holds anything else.
    """
    shape, dtype = file.header().shape, file.header().dtype
    found = file.whole().reshape(-1) if shape in ((count,), (count, 1)) and dtype.kind in "iu" else None
    if found is None or found.min(initial=0) < 0:
        raise ValueError(
            f"data.label: {file.name} must hold the class 0, 1, ... of each of {count} images "
            f"(got {dtype} of shape {list(shape)}): give another array, or leave it out"
        )
    return found.astype(np.int64)


def of_split(split: Split, names: Sequence[str]) -> Iterator[str]:
    """Yield the usual array names of a split, such as ``train_images`` and ``x_train``."""
    return (name for word in SPLITS[split] for each in names for name in (f"{word}_{each}", f"{each}_{word}"))


def is_array(name: str) -> bool:
    """Whether a file name is that of an array."""
    return not name.startswith(".") and name.removesuffix(".gz").endswith((".npy", ".npz", "-ubyte", ".idx"))
