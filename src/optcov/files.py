"""Writes files so that they appear on disk complete or not at all."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to ``path`` when the block ends, and deleted if it fails.

    What processes of this machine left in the folder when they were killed is deleted first.

    Raises:
        OSError: if ``path`` cannot be written; the error names it.
    """
    _tidy(path.parent.absolute())
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # in a folder from a stranger it may be a link
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):  # None if a write failed half-way
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: if ``path`` cannot be written; the error names it.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


@cache  # once for each folder: to list one of many samples takes a while
def _tidy(folder: Path) -> None:
    """Delete the temporary files of processes of this machine that have ended."""
    name = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.partial")
    with suppress(OSError):
        for entry in os.scandir(folder):
            found = name.fullmatch(entry.name)
            if found is not None and not _lives(int(found[1])):
                os.unlink(entry.path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a received folder may hold any number
        return False
    except OSError:  # it belongs to someone else
        return True
    return True
