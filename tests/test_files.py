"""A file appears complete or not at all, whatever fails, and what killed processes left is cleared away."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from optcov.errors import sentence
from optcov.files import write_atomically


def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("operation", ["write_bytes", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str):
    path = tmp_path / "results.json"
    write_atomically(path, "before")
    monkeypatch.setattr(os if operation == "fsync" else Path, operation, fail)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(path, "after")
    assert sentence(raised.value).startswith(f"{path} cannot be written or read (No space left on device): ")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["results.json"]


def test_only_files_of_dead_processes_of_this_machine_are_cleared_away(tmp_path: Path):
    if (process := os.fork()) == 0:
        os._exit(0)
    os.waitpid(process, 0)
    here = socket.gethostname()
    dead = [f".a.json.{here}.{process}.partial", f".a.json.{here}.{10**30}.partial"]
    kept = [f".a.json.{here}.1.partial", f".a.json.another.{process}.partial", f"a.json.{here}.{process}.partial"]
    for name in dead + kept:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "b.json", "")
    assert set(os.listdir(tmp_path)) == {"b.json", *kept}
