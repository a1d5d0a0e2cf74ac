"""Hugging Face data sets on disk, written by ``save_to_disk`` or downloaded from the hub as parquet files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optcov.data.base import Split
from optcov.data.encoded import EncodedImages, Pictures
from optcov.data.files import file_fingerprint
from optcov.data.image_folder import SPLITS
from optcov.data.tables import ArrowTable, ParquetTable, Shards, Table, is_image_type
from optcov.foreign import DamagedError, read_json

MAX_JSON = 2**24  # bytes of the longest list of files that is read
HOW = "give the folder of datasets' save_to_disk, or one with train-*.parquet"


@dataclass(eq=False)
class HuggingFaceData(EncodedImages):
    """The central part of each image of a data set, resized; the package ``datasets`` is not needed.

    Args:
        root: a folder from ``save_to_disk``, with all splits or one, or a folder of parquet files named by their split,
            which may also be in ``data/`` or another subfolder.
        image: name of the image column; None for the only one.
        label: name of the class column; None for ``label`` or ``labels`` if there is one.
        image_size, crop, resample, channels, value_range, background, val_size, test_size: as in `EncodedImages`.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if a setting is invalid.
    """

    name = "huggingface"

    _: KW_ONLY
    image: str | None = None
    label: str | None = None

    def origin(self) -> Path:
        self._files()
        return self.path

    def fingerprint(self, split: Split) -> dict[str, Any]:
        files = {str(theirs): [file_fingerprint(path) for path in paths] for theirs, paths in self._files().items()}
        return {"files": files, "image": self.image, "label": self.label}

    def pictures(self) -> Rows:
        return Rows(self._files(), self.image, self.label, self.path)

    def _files(self) -> dict[Split | None, list[Path]]:
        """The tables of each split, in order; the key is None for tables without a split."""
        root = self.path
        if (root / "state.json").is_file():
            return {None: _saved(root)}
        folders = [folder for folder in _folders(root) if (folder / "state.json").is_file()]
        if folders and (named := {SPLITS.get(folder.name): _saved(folder) for folder in folders}).keys() - {None}:
            return {split: paths for split, paths in named.items() if split is not None}
        for folder in (root, *_folders(root)):
            shards = sorted(folder.glob("*.parquet"))
            if shards:
                named = {}
                for path in shards:
                    named.setdefault(SPLITS.get(re.split(r"[-_.]", path.name)[0]), []).append(path)
                return {split: paths for split, paths in named.items() if split is not None} or named
        raise ValueError(f"data.root = {root} is not a data set of Hugging Face's: {HOW}")


class Rows(Pictures):
    """The rows of the tables of all splits.

    Args:
        files: the tables of each split.
        image, label: names of the columns; None to find them.
        root: folder of the data set, for messages.
    """

    def __init__(self, files: dict[Split | None, list[Path]], image: str | None, label: str | None, root: Path) -> None:
        tables: list[Table] = []
        splits: list[Split] = []
        for split, paths in files.items():
            for path in paths:
                try:
                    table: Table = ArrowTable(path) if path.suffix == ".arrow" else ParquetTable(path)
                except ValueError as error:
                    raise ValueError(f"data.root: {error}: copy or download it again") from error
                tables.append(table)
                splits += [] if split is None else [split] * len(table)
        self.shards, self.splits = Shards(tables), splits
        columns = tables[0].columns
        for table in tables:
            if table.columns.keys() != columns.keys():
                raise ValueError(f"data.root: {table.path} has columns that differ from {tables[0].path}: {HOW}")
        self.column = _image_column(columns, image, root)
        for name in ("label", "labels") if label is None else (label,):
            try:
                self.labels, self.classes = _labels(tables, name, root), tables[0].class_names(name)
            except ValueError:
                if label is not None:
                    raise  # without data.label, a column that only has the usual name need not hold classes

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, index: int) -> tuple[bytes, str]:
        table, row = self.shards.find(index)
        return table.encoded(row, self.column), f"row {row} of {table.path}"


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ValueError(f"data.root = {root} cannot be read ({error.strerror}): {HOW}") from error


def _saved(folder: Path) -> list[Path]:
    """The arrow files of one split, as listed in its ``state.json``."""
    state = _json(folder / "state.json")
    names = [str(each["filename"]) for each in state.get("_data_files", []) if isinstance(each, dict)]
    paths = [folder / name for name in names]
    for path in paths:
        if path.resolve().parent != folder.resolve() or not path.is_file():
            raise ValueError(f"data.root: {path} is missing in {folder}: copy or download the data set again")
    if not paths:
        raise ValueError(f"data.root: {folder / 'state.json'} lists no files: copy or download the data set again")
    if state.get("_indices_data_files"):
        raise ValueError(
            f"data.root: {folder} is a selection of rows: save it again with flatten_indices().save_to_disk(...)"
        )
    return paths


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object that describes a data set.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        found = read_json(path, MAX_JSON)
        if not isinstance(found, dict):
            raise DamagedError("it is not an object")
    except (DamagedError, OSError) as error:
        raise ValueError(f"data.root: {path} is damaged ({error}): copy or download the data set again") from error
    return found


def _image_column(columns: dict[str, Any], wanted: str | None, root: Path) -> str:
    images = [name for name, kind in columns.items() if is_image_type(kind)]
    if wanted is None and len(images) == 1:
        return images[0]
    if wanted not in images:
        kinds = ", ".join(f"{name}: {str(kind)[:40]}" for name, kind in columns.items())
        what = "one column of image files" if wanted is None else f"image files in its column {wanted}"
        raise ValueError(f"data.root = {root} must have {what} (got {kinds}): give data.image=COLUMN")
    assert wanted is not None
    return wanted


def _labels(tables: Sequence[Table], column: str, root: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    missing = [table for table in tables if column not in table.columns]
    if missing:
        have = ", ".join(missing[0].columns)
        raise ValueError(f"data.root = {root} has no column {column} (it has {have}): give data.label=COLUMN")
    values = np.concatenate([table.values(column) for table in tables])
    if not np.issubdtype(values.dtype, np.integer) or values.min(initial=0) < 0:
        raise ValueError(
            f"data.root = {root} must have classes 0, 1, ... in its column {column} (got {values.dtype}, "
            f"{values[:1].tolist()} first): give another data.label=COLUMN"
        )
    return values.astype(np.int64)
