"""Image files in a folder or a zip archive, read in place: nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from optcov.data.records import CorruptImageError
from optcov.data.untrusted import MAX_BYTES, TooLargeError, check_size, read_member

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
TAIL = 64 * 2**20  # bytes of a large file that identify it


class Files(ABC):
    """Named files.

    Args:
        place: the folder or archive.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the files that does not depend on their location; takes well under a second for 200,000 images."""

    @abstractmethod
    def names(self) -> list[str]:
        """The relative paths of all files, sorted, with ``/`` as separator."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read the content of a file.

        Raises:
            CorruptImageError: if it cannot be read.
        """

    def images(self) -> list[str]:
        """The names that have an image suffix and are not hidden."""
        return [name for name in self.names() if is_image(name)]


class FolderFiles(Files):
    """A folder and all its subfolders."""

    def fingerprint(self) -> str:
        """Hash names, sizes and modification times; names and sizes alone do not distinguish two folders of bitmaps."""
        return hashlib.sha256(repr(sorted(_walk(self.place))).encode()).hexdigest()

    def names(self) -> list[str]:
        return sorted(name for name, *_ in _walk(self.place))

    def read(self, name: str) -> bytes:
        path = self.place / name
        try:
            check_size(path.stat().st_size, MAX_BYTES)
            return path.read_bytes()
        except TooLargeError as error:
            raise CorruptImageError(f"{path} cannot be read ({error})") from error
        except OSError as error:
            raise CorruptImageError(f"{path} cannot be read ({error.strerror})") from error


class ZipFiles(Files):
    """A zip archive.

    Raises:
        ValueError: if it is truncated or not a zip archive.
    """

    _archive: zipfile.ZipFile | None = None

    @property
    def archive(self) -> zipfile.ZipFile:
        """The archive, opened on first use, because reading the list of 200,000 files takes seconds."""
        if self._archive is None:
            try:
                self._archive = zipfile.ZipFile(self.place)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(
                    f"data.root: {self.place} is truncated or not a zip archive ({error}): copy or download it again"
                ) from error
        return self._archive

    def fingerprint(self) -> str:
        """Hash the size and the end of the archive, where a zip keeps names, sizes and checksums of all its files."""
        return file_fingerprint(self.place)

    def names(self) -> list[str]:
        return sorted(name for name in self.archive.namelist() if not name.endswith("/"))

    def read(self, name: str) -> bytes:
        try:
            return read_member(self.archive, name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, TooLargeError) as error:
            raise CorruptImageError(f"{name} in {self.place} cannot be read ({error})") from error


def files_in(place: Path) -> Files:
    """The files of a folder or a zip archive."""
    return FolderFiles(place) if place.is_dir() else ZipFiles(place)


def is_image(name: str) -> bool:
    """Whether a name has an image suffix, and is neither hidden nor in macOS's ``__MACOSX`` folder."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts


def file_fingerprint(path: Path) -> str:
    """A hash of a file's size and its last 64 MiB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return hashlib.sha256(str(size).encode() + file.read()).hexdigest()


def _walk(root: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time (ns) of every file below a folder; follows links, visits no folder twice."""
    found, seen = [], set()
    folders = [(str(root), "")]
    while folders:
        folder, prefix = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    stat = entry.stat()
                    found.append((prefix + entry.name, stat.st_size, stat.st_mtime_ns))
    return found
