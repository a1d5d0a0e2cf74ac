"""Opens files that may come from a stranger, checking what they declare before allocating memory for it.

Images are opened only in a short list of formats (Pillow would pass PostScript under any name to Ghostscript).  Archive
members, images and arrays are refused if their declared size is too large, and no more than that is ever decompressed.
"""

from __future__ import annotations

import ast
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from optcov.data.records import CorruptImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # largest image: 256 MiB in colour, where Pillow begins to warn
MAX_BYTES = 2**29  # largest encoded image; one with MAX_PIXELS in 16-bit colour just fits
MAX_ARRAY = 2**31  # bytes of the largest array that is read into memory as a whole
CHUNK = 2**24  # bytes read at once
MAX_HEADER = 2**14  # bytes of the longest text that describes an array

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of the others, zipfile does not bound what comes out
# what Pillow raises for bytes that are not an image, are cut short, or unpack to more than its limit
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class TooLargeError(ValueError):
    """A file declares a size above the limit for its kind; the message is the end of a sentence."""


def open_image(encoded: bytes, name: str) -> ImageFile.ImageFile:
    """An image file, decoded by Pillow.

    Args:
        encoded: the content of the file.
        name: of the image, for messages.
    Raises:
        CorruptImageError: naming the image, if it is of another format, too large, or damaged.
    """
    try:
        check_size(len(encoded), MAX_BYTES)
        opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if math.prod(opened.size) > MAX_PIXELS:
            raise TooLargeError(f"{opened.width} x {opened.height} pixels are more than the {MAX_PIXELS} that are read")
        opened.load()
    except _DAMAGE as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "cannot identify image file" in problem:
            problem = f"it is not one of {', '.join(FORMATS)}"
        raise CorruptImageError(f"{name} cannot be decoded ({problem})") from error
    return opened


def check_size(size: int, limit: int) -> None:
    """Raise TooLargeError for more bytes than a limit."""
    if size > limit:
        raise TooLargeError(f"{size / 1e9:.3g} GB are more than the {limit / 1e9:.3g} GB that are read")


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_BYTES) -> bytes:
    """A file in a zip archive, of which no more than its declared size is ever unpacked.

    Raises:
        TooLargeError: if it declares more than the limit.
        zipfile.BadZipFile: if it is damaged, or not packed by deflation.
    """
    info = archive.getinfo(name)
    check_size(info.file_size, limit)
    with open_member(archive, name) as file:
        return file.read(info.file_size + 1)  # a size bounds what zipfile unpacks; without one, nothing does


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file in a zip archive as a stream.

    Raises:
        zipfile.BadZipFile: if it is damaged, or not packed by deflation.
    """
    if archive.getinfo(name).compress_type not in _PACKED:
        raise zipfile.BadZipFile("it is packed by another method than deflation")
    return archive.open(name)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class ArrayHeader:
    """What a ``.npy`` file declares.

    Attributes:
        shape: of the array.
        dtype: of its elements; never of objects, which are pickles.
        fortran: whether the first axis varies fastest.
        offset: bytes of the header.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """The size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, size: int | None) -> None:
        """Raise ValueError if a file of this size has not what is declared; None if the size is not known."""
        if size is not None and self.nbytes + self.offset != size:
            raise ValueError(f"it declares {self.nbytes:,} bytes of data and has {size - self.offset:,}")


def read_header(file: _Readable, size: int | None) -> ArrayHeader:
    """The header of a ``.npy`` file, checked against the size of the file.

    Args:
        file: at its beginning; left at the first element.
        size: of the whole file in bytes, if it is known.
    Raises:
        ValueError: with the end of a sentence, if it is not an array of numbers or text, or of another size.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8 or magic[6] not in (1, 2, 3):
        raise ValueError("it is not an array of NumPy")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header of {length} bytes is not one of NumPy")
    try:
        told = ast.literal_eval(file.read(length).decode("latin1"))
        shape, fortran = told["shape"], bool(told["fortran_order"])
        dtype = np.lib.format.descr_to_dtype(told["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which may run code")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and 0 <= n < 2**48 for n in shape)):
        raise ValueError("its header is damaged")
    header = ArrayHeader(shape, dtype, fortran, 8 + width + length)
    header.check(size)
    return header


def read_array(file: _Readable, size: int, limit: int = MAX_ARRAY) -> NDArray[Any]:
    """A ``.npy`` file as an array in memory.

    Args:
        file: at its beginning.
        size: of the whole file, in bytes.
        limit: bytes of the array at most.
    Raises:
        ValueError: with the end of a sentence, if it cannot be read.
    """
    header = read_header(file, size)
    check_size(header.nbytes, limit)
    content = np.empty(header.nbytes, np.uint8)
    for first in range(0, header.nbytes, CHUNK):
        part = content[first : first + CHUNK]
        read = file.read(len(part))
        if len(read) != len(part):
            raise ValueError(f"it ends after {first + len(read):,} of {header.nbytes:,} bytes")
        part[:] = np.frombuffer(read, np.uint8)
    return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def read_npz(path: Path, wanted: Iterable[str] | None = None, limit: int = MAX_ARRAY) -> dict[str, NDArray[Any]]:
    """Arrays of a ``.npz`` file, in memory.

    Args:
        path: of the file.
        wanted: names of arrays, of which those that are there are read; None for all.
        limit: bytes of all of them together, at most.
    Raises:
        ValueError: with the end of a sentence, if one cannot be read.
        OSError, zipfile.BadZipFile, zlib.error: if the file cannot.
        KeyError: with the names of its arrays, if none of those that are wanted is there.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
        for name, member in zip(names, archive.infolist(), strict=True):
            if wanted is not None and name not in wanted:
                continue
            with open_member(archive, member.filename) as file:
                arrays[name] = read_array(file, member.file_size, limit)
            limit -= arrays[name].nbytes
    if wanted is not None and not arrays:
        raise KeyError(", ".join(names) or "nothing")
    return arrays
