"""A disk that is full at any write: one sentence, nothing that passes for whole, and the repeat ends as if undisturbed.

Every file fails once, and again for each further time that a command writes it; the repeat goes on from what each of
these failures left. `python -m benchmarks.kills` does the same to whole command lines.
"""

import builtins
import csv
import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import CLI, files
from safetensors.torch import load_file

from optcov.checkpoint import digest_of
from optcov.cli import main, tasks
from optcov.errors import sentence
from optcov.foreign import read_json

TRAIN = [
    "var=beta",
    "trainer.max_steps=2",
    "checkpoint_every=1",
    "num_samples=2",
    "sample_batch_size=2",
]
COMMANDS = {
    "train": [*TRAIN, "hydra.run.dir=disturbed"],
    "sample": ["run=base", "num_samples=2", "hydra.run.dir=disturbed"],
    "evaluate": ["run=base", "num_samples=2", "hydra.run.dir=disturbed"],
}
FILES = {"train": 15, "sample": 5, "evaluate": 6}  # the fewest failures
open_file = io.open


class Disk:
    """A disk that fills up at the first write that has not failed before.

    Args:
        folder: its folder; writes elsewhere go well.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed = folder, set[tuple[str, int]]()
        self.begin()

    def begin(self) -> None:
        """Free all space, for the next attempt."""
        self.writes, self.full = dict[str, int](), False

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        path = "" if isinstance(file, int) else os.path.relpath(os.path.abspath(file), self.folder)
        # a lock's file tells other processes who holds it, and is left out if it cannot be written
        if set(mode) & set("wxa") and not path.startswith("..") and not path.endswith(".lock"):
            self.writes[path] = self.writes.get(path, 0) + 1
            write = path, self.writes[path]
            if self.full or write not in self.failed:
                self.full = True
                self.failed.add(write)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return open_file(file, mode, *args, **kwargs)


def check_whole(folder: Path) -> None:
    """Read every file that a later command would use."""
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json" and not path.name.startswith("."):
            read_json(path)
        assert path.suffix != ".partial"


def left(folder: Path) -> dict[str, Any]:
    """What must not depend on what went wrong."""
    found: dict[str, Any] = {"files": files(folder)}
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            found[path.name] = digest_of(load_file(path))
        elif path.suffix in (".npz", ".png"):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "results.json":
            found[path.name] = read_json(path)["metrics"]
        elif path.name == "metrics.csv":
            found[path.name] = list(csv.DictReader(path.open()))
    return found


@pytest.fixture
def chosen(run: CLI, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Composes and checks the config of a command, once for all its attempts."""

    def config(task: str) -> Any:
        found: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(main, "_start", lambda task, config: found.append(config))
            run(*COMMANDS[task], task=task, tiny=task == "train")
        return found[0]

    return config


@pytest.mark.parametrize("task", COMMANDS)
def test_a_disk_that_is_full_at_any_write(
    run: CLI, trained: Path, chosen: Any, monkeypatch: pytest.MonkeyPatch, task: str
):
    monkeypatch.chdir(run.folder)
    Path("base").symlink_to(trained)
    config, disk, failures = chosen(task), Disk(run.folder), list[tuple[str, str]]()
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", disk.open)
        patch.setattr(builtins, "open", disk.open)
        while True:
            disk.begin()
            try:
                getattr(tasks, task)(config)
                break
            except OSError as error:
                failures.append((str(error.filename), sentence(error)))
                check_whole(run.folder)
    for name, said in failures:
        assert said.startswith(f"{name} cannot be written or read (No space left on device): ")
        assert not name.endswith(".partial")
    assert len(failures) >= FILES[task]
    if task != "train":
        assert not (run.folder / "disturbed" / ".parts").exists()
    (run.folder / "disturbed").rename(run.folder / "first")
    getattr(tasks, task)(config.model_copy(update={"cache_dir": "other"}))
    first, second = (left(run.folder / name) for name in ("first", "disturbed"))
    assert first == second
