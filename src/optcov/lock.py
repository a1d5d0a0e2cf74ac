"""A lock between processes; those that wait for it are told which process holds it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from optcov.foreign import DamagedError, printable, read_json

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the duration of a block; a process that waits logs which one holds it, and since when.

    Args:
        path: the lock file, which is created; its folder must exist.
        what: what the lock protects, for the message.
    Raises:
        OSError: if the file cannot be created.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "it is a folder, where a lock file belongs", str(path))
    lock, holder = FileLock(path), path.with_name(f".holder{path.name}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is in use by %s: waiting for it to end", what, _told(holder))
        lock.acquire()
    try:
        with suppress(OSError):
            now = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            holder.write_text(json.dumps(now))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _told(holder: Path) -> str:
    try:
        said = read_json(holder)
        return printable(f"process {said['process']} on {said['host']} since {said['since']}")
    except (OSError, DamagedError, KeyError, TypeError):  # the holder has only just taken the lock
        return "another process"
