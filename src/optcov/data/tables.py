"""Tables of encoded images as Hugging Face stores them: parquet shards and the arrow files of ``save_to_disk``.

Images are in a column of type ``struct<bytes, path>`` or bytes.  Only one part of a table is in memory at a time.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from optcov.data.records import CorruptImageError
from optcov.data.untrusted import MAX_ARRAY, TooLargeError, check_size
from optcov.wording import first_line


class Table(ABC):
    """A table in a file, read part by part.

    Args:
        path: path of the file.
    Raises:
        ValueError: naming the file, if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part: tuple[int, str, Any] | None = None  # number, column and values of the part in memory
        with self.reading():
            self.columns, sizes = self.open()
        self.starts = np.cumsum([0, *sizes])  # the first row of each part, and the number of rows

    @abstractmethod
    def open(self) -> tuple[dict[str, Any], list[int]]:
        """Open the file; return the arrow type of each column and the number of rows of each part."""

    @abstractmethod
    def part(self, number: int, column: str) -> Any:
        """Read a column of a part as an arrow array."""

    described: dict[bytes, bytes] | None = None  # metadata that the writer of the file added

    def __len__(self) -> int:
        return int(self.starts[-1])

    def class_names(self, column: str) -> list[str] | None:
        """The class names of a column, from Hugging Face's metadata; None if there are none."""
        try:
            kind = json.loads((self.described or {})[b"huggingface"])["info"]["features"][column]
            return [str(name) for name in kind["names"]]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    def encoded(self, row: int, column: str) -> bytes:
        """The image file in a row; empty if there is none.

        Raises:
            CorruptImageError: if the row cannot be read, or names a file elsewhere instead of holding it.
        """
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        if self._part is None or self._part[:2] != (number, column):
            try:
                with self.reading():
                    self._part = (number, column, self.part(number, column))
            except ValueError as error:
                raise CorruptImageError(str(error)) from error
        value = self._part[2][row - int(self.starts[number])].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                raise CorruptImageError(f"row {row} of {self.path} names a file and does not hold it")
            value = value.get("bytes")
        return value or b""

    def values(self, column: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A whole column of numbers."""
        with self.reading():
            parts = [self.part(number, column) for number in range(len(self.starts) - 1)]
            found: np.ndarray[Any, np.dtype[Any]] = np.concatenate(
                [part.to_numpy(zero_copy_only=False) for part in parts] or [np.zeros(0, np.int64)]
            )
            return found

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn the errors of a damaged file into a one-sentence ValueError."""
        import pyarrow as pa  # type: ignore[import-untyped]

        try:
            yield
        except (pa.ArrowException, OSError, TooLargeError, MemoryError) as error:
            problem = first_line(error)
            kind = self.path.suffix.removeprefix(".")
            raise ValueError(f"{self.path} is truncated or not {kind} ({problem})") from error


class ParquetTable(Table):
    """A parquet file; its parts are its row groups."""

    def open(self) -> tuple[dict[str, Any], list[int]]:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        self.file = pq.ParquetFile(self.path)
        schema, metadata = self.file.schema_arrow, self.file.metadata
        self.described = schema.metadata
        columns = dict(zip(schema.names, schema.types, strict=True))
        return columns, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def part(self, number: int, column: str) -> Any:
        group = self.file.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        wanted = [each for each in chunks if each.path_in_schema.split(".")[0] == column]
        check_size(sum(each.total_uncompressed_size for each in wanted), MAX_ARRAY)
        return self.file.read_row_group(number, columns=[column])[column].combine_chunks()


class ArrowTable(Table):
    """An arrow file, which is mapped into memory; its parts are its record batches."""

    def open(self) -> tuple[dict[str, Any], list[int]]:
        import pyarrow as pa

        with self.path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
        source = pa.memory_map(str(self.path))
        if is_file:
            reader = pa.ipc.open_file(source)
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            reader = pa.ipc.open_stream(source)
            self.batches = list(reader)
        self.described = reader.schema.metadata
        columns = dict(zip(reader.schema.names, reader.schema.types, strict=True))
        return columns, [len(batch) for batch in self.batches]

    def part(self, number: int, column: str) -> Any:
        return self.batches[number].column(column)


def is_image_type(kind: Any) -> bool:
    """Whether a column of this arrow type can hold encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class Shards:
    """Several tables, addressed as one.

    Args:
        tables: the tables in order.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.starts = np.cumsum([0, *map(len, tables)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def find(self, index: int) -> tuple[Table, int]:
        """The table that holds a row, and the number of the row in it."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.tables[number], index - int(self.starts[number])
