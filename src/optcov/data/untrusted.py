"""Opens files that may come from a stranger; the size they declare is checked before memory is allocated for it.

Images are opened only in a short list of formats, because Pillow would pass PostScript under any name to Ghostscript.
Archive members, images and arrays are refused if their declared size is too large, and no more than that size is ever
decompressed.
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
from optcov.wording import first_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # pixels of the largest image, 256 MiB in colour; Pillow warns above this
MAX_BYTES = 2**29  # bytes of the largest encoded image; MAX_PIXELS in 16-bit colour just fit
MAX_ARRAY = 2**31  # bytes of the largest array that is read into memory as a whole
CHUNK = 2**24  # bytes read at once
MAX_HEADER = 2**14  # bytes of the longest text that describes an array

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile does not bound the output of the other methods
# the errors Pillow raises for bytes that are not an image, are cut short, or unpack to more than its limit
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class TooLargeError(ValueError):
    """A file declares a size above the limit for its kind; the message is the end of a sentence."""


def open_image(encoded: bytes, name: str) -> ImageFile.ImageFile:
    """Decode an image file with Pillow.

    Args:
        encoded: the content of the file.
        name: name of the image, for messages.
    Raises:
        CorruptImageError: naming the image, if it has another format, is too large, or is damaged.
    """
    try:
        check_size(len(encoded), MAX_BYTES)
        opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if math.prod(opened.size) > MAX_PIXELS:
            raise TooLargeError(f"{opened.width} x {opened.height} pixels are more than the {MAX_PIXELS} that are read")
        opened.load()
    except _DAMAGE as error:
        problem = first_line(error)
        if "cannot identify image file" in problem:
            problem = f"it is not one of {', '.join(FORMATS)}"
        raise CorruptImageError(f"{name} cannot be decoded ({problem})") from error
    return opened


def check_size(size: int, limit: int) -> None:
    """Raise TooLargeError if a size in bytes is above a limit."""
    if size > limit:
        raise TooLargeError(f"{size / 1e9:.3g} GB are more than the {limit / 1e9:.3g} GB that are read")


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_BYTES) -> bytes:
    """Read a file in a zip archive; no more than its declared size is ever unpacked.

    Raises:
        TooLargeError: if its declared size is above the limit.
        zipfile.BadZipFile: if it is damaged, or compressed by a method other than deflate.
    """
    info = archive.getinfo(name)
    check_size(info.file_size, limit)
    with open_member(archive, name) as file:
        return file.read(info.file_size + 1)  # without a size, zipfile would unpack any amount


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a file in a zip archive as a stream.

    Raises:
        zipfile.BadZipFile: if it is damaged, or compressed by a method other than deflate.
    """
    if archive.getinfo(name).compress_type not in _PACKED:
        raise zipfile.BadZipFile("it is compressed by a method other than deflate")
    return archive.open(name)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class ArrayHeader:
    """The header of an array file: what it declares about its array.

    Attributes:
        shape: shape of the array.
        dtype: type of its elements; never Python objects, which would be pickles.
        fortran: whether the first axis varies fastest.
        offset: length of the header in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, size: int | None) -> None:
        """Raise ValueError if the file's size in bytes differs from what is declared; None if it is not known."""
        if size is not None and self.nbytes + self.offset != size:
            raise ValueError(f"it declares {self.nbytes:,} bytes of data and has {size - self.offset:,}")


def read_header(file: _Readable, size: int | None) -> ArrayHeader:
    """Read the header of a ``.npy`` file and check it against the size of the file.

    Args:
        file: the file at its beginning; it is left at the first element.
        size: size of the whole file in bytes; None if it is not known.
    Raises:
        ValueError: with the end of a sentence, if the file is not an array of numbers or text, or has another size.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8 or magic[6] not in (1, 2, 3):
        raise ValueError("it is not an array of NumPy")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header of {length} bytes is too long for NumPy's format")
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
    """Read a ``.npy`` file into memory.

    Args:
        file: the file at its beginning.
        size: size of the whole file in bytes.
        limit: largest size of the array in bytes.
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
    """Read arrays of a ``.npz`` file into memory.

    Args:
        path: path of the file.
        wanted: names of the arrays to read if the file has them; None for all arrays.
        limit: largest size of all of them together, in bytes.
    Raises:
        ValueError: with the end of a sentence, if an array cannot be read.
        OSError, zipfile.BadZipFile, zlib.error: if the file cannot be read.
        KeyError: with the names of its arrays, if the file has none of the wanted arrays.
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
