"""Reads array files row by row: ``.npy``, a member of an ``.npz``, or IDX (MNIST's format), plain or ``.gz``.

Only one row is in memory at a time, so a file may be larger than memory.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optcov.data.untrusted import MAX_ARRAY, ArrayHeader, check_size, open_member, read_header
from optcov.wording import first_line

IDX_TYPES = {0x08: "|u1", 0x09: "|i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file.

    Args:
        path: path of the file.
        member: name of the array in an ``.npz`` file; None for other files.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """The name of the array in messages."""
        return str(self.path) if self.member is None else f"{self.member} in {self.path}"

    def header(self) -> ArrayHeader:
        """Read the shape and type that the file declares.

        Raises:
            ValueError: naming the file, if it is damaged or does not hold rows of numbers.
        """
        with self._opened() as (_, header):
            return header

    def whole(self) -> NDArray[Any]:
        """Read the whole array into memory.

        Raises:
            ValueError: as in `header`, or if it is too large.
        """
        header = self.header()
        try:
            check_size(header.nbytes, MAX_ARRAY)
        except ValueError as error:
            raise ValueError(f"data.root: {self.name} cannot be read ({error})") from error
        return np.array(list(self.rows()), header.dtype).reshape(header.shape)

    def rows(self) -> Iterator[NDArray[Any]]:
        """Yield the rows in order.

        Raises:
            ValueError: as in `header`.
        """
        with self._opened() as (file, header):
            size = header.nbytes // max(1, header.shape[0])
            for index in range(header.shape[0]):
                content = file.read(size)
                if len(content) != size:
                    raise ValueError(f"it ends in row {index} of {header.shape[0]}")
                yield np.frombuffer(content, header.dtype).reshape(header.shape[1:])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, ArrayHeader]]:
        """Open the unpacked file at its first row; yield it and its header, and name it in any error."""
        try:
            with self._unpacked() as (file, size):
                header = idx_header(file, size) if file.peek(2)[:2] == b"\0\0" else read_header(file, size)
                if header.fortran and len(header.shape) > 1:
                    raise ValueError("its first axis varies fastest: save it again after numpy.ascontiguousarray")
                if not header.shape or header.dtype.kind not in "biuf":
                    raise ValueError(f"it holds {header.dtype} of shape {list(header.shape)}, not rows of numbers")
                yield file, header
        except _DAMAGE as error:
            problem = first_line(error)
            raise ValueError(f"data.root: {self.name} cannot be read ({problem})") from error

    @contextmanager
    def _unpacked(self) -> Iterator[tuple[Any, int | None]]:
        """Open the file, unpacked; yield it and the size it must have, None if the size is not stated."""
        if self.member is not None:
            name = f"{self.member}.npy"
            with zipfile.ZipFile(self.path) as archive, open_member(archive, name) as member:
                yield member, archive.getinfo(name).file_size
        elif self.path.suffix == ".gz":
            with gzip.open(self.path) as packed:
                yield packed, None
        else:
            with self.path.open("rb") as plain:
                yield plain, self.path.stat().st_size


def members(path: Path) -> list[str]:
    """List the names of the arrays in an ``.npz`` file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGE as error:
        raise ValueError(f"data.root: {path} cannot be read ({error})") from error


def idx_header(file: Any, size: int | None) -> ArrayHeader:
    """Read the header of an IDX file: two zeros, a type, the number of axes, and their lengths.

    Args:
        file: the file at its beginning; it is left at the first element.
        size: size of the whole file in bytes; None if it is not known.
    Raises:
        ValueError: with the end of a sentence, if the file is not IDX or has another size.
    """
    _, _, kind, axes = file.read(4).ljust(4, b"\0")
    lengths = file.read(4 * axes)
    if kind not in IDX_TYPES or len(lengths) < 4 * axes:
        raise ValueError("its header is damaged")
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    header = ArrayHeader(shape, np.dtype(IDX_TYPES[kind]), False, 4 + 4 * axes)
    header.check(size)
    return header
