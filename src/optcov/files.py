"""Writes files so that they appear on disk complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to ``path`` when the block ends, and deleted if it fails.

    Raises:
        OSError: if ``path`` cannot be written; the error names it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is None:  # for example when a write failed half-way
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
