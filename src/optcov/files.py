"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file, which is on disk as ``path`` when the block ends; if the block fails, nothing is.

    Raises:
        OSError: naming ``path``, if it can not be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is None:  # as of a write that failed half way
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
