"""A lock between processes; those that find it taken are told which process holds it, and wait or end."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from optcov.errors import ConfigError
from optcov.files import write_atomically
from optcov.foreign import DamagedError, printable, read_json

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # what a file system without locks answers


class InUseError(Exception):
    """Another process holds a lock; the message says which one."""


@contextmanager
def locked(path: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Hold a lock for the duration of a block; a process that finds it taken says which one holds it, and since when.

    The lock ends with its process, however that ends. On a file system without locks the block runs without one, with
    a warning: files still appear complete or not at all, but two processes might do the same work.

    Args:
        path: the lock file, which is created; its folder must exist.
        what: what the lock protects, for the message.
        wait: wait for the other process to end; otherwise raise.
    Raises:
        InUseError: if another process holds the lock, and ``wait`` is false.
        ConfigError: if there is a folder in place of the file.
        OSError: if the file cannot be created.
    """
    if path.is_dir():
        raise ConfigError(
            f"{what} cannot be locked ({path} is a folder, where a lock file belongs): delete that folder"
        )
    lock, holder = FileLock(path, fallback_to_soft=False), path.with_name(f".holder{path.name}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        found = f"{what} is in use by {_told(holder)}"
        if not wait:
            raise InUseError(f"{found}: repeat the command when that has ended, or set wait=true") from None
        log.warning("%s: waiting for it to end", found)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s has a file system without locks: let no other command write there meanwhile", what)
    try:
        with suppress(OSError):
            now = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_atomically(holder, json.dumps(now))
        yield
    finally:
        with suppress(OSError):  # such as a folder in its place
            holder.unlink(missing_ok=True)
        lock.release()


def _told(holder: Path) -> str:
    try:
        said = read_json(holder)
        return printable(f"process {said['process']} on {said['host']} since {said['since']}")
    except (OSError, DamagedError, KeyError, TypeError):  # the holder has only just taken the lock
        return "another process"
