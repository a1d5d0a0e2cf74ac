"""Damages each file that a finished run left and repeats every command, in this process.

A command may end as it would have with an intact file, or say in one sentence which file is damaged.  It must not end
in a traceback, and it must not use damaged content.  Run it with ``python -m benchmarks.damage``; it takes minutes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.singleton import Singleton

from optcov.cli.main import Task, main
from optcov.foreign import read_json

SETTINGS = [
    "model=unet", "model.channels=8", "model.channel_mult=[1,1]", "model.attention_resolutions=[]",
    "model.middle_attention=false", "trainer=cpu", "trainer.max_steps=2", "variance_steps=null", "variance_lr=null",
    "cooldown=0", "optimizer=adamw", "schedule.num_steps=50", "sampler.num_steps=3", "num_samples=8",
    "sample_batch_size=8", "logger=csv", "num_threads=1",
]  # fmt: skip


def flipped(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Remove the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    """Remove the content of a file."""
    path.write_bytes(b"")


def folder(path: Path) -> None:
    """Replace a file by a folder."""
    path.unlink()
    path.mkdir()


DAMAGES: tuple[Callable[[Path], None], ...] = (flipped, cut, emptied, folder)


@dataclass(frozen=True)
class Outcome:
    """The way in which a command ended.

    Args:
        said: the sentence of a refusal; None if the command succeeded.
        result: what it computed: samples, scores or tables.
        words: everything it printed.
    """

    said: str | None
    result: object
    words: str


@contextlib.contextmanager
def _at(place: Path, task: str, arguments: list[str]) -> Iterator[io.StringIO]:
    before = Path.cwd(), dict(os.environ), sys.argv, Singleton.get_state()
    words, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(words)
    try:
        os.chdir(place)
        sys.argv = [f"{task}.py", *arguments]
        root.addHandler(handler)
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            yield words
    finally:
        root.removeHandler(handler)
        os.chdir(before[0])
        os.environ.clear()
        os.environ.update(before[1])
        sys.argv = before[2]
        Singleton.set_state(before[3])


def give(place: Path, task: Task, *arguments: str, result: str) -> Outcome:
    """Run a command in a folder.

    Args:
        place: the folder.
        task: ``train``, ``sample`` or ``evaluate``.
        arguments: arguments of the command line.
        result: the file that holds its result, relative to the folder.
    Raises:
        AssertionError: if it ends in anything but success or one sentence.
    """
    said = None
    with _at(place, task, list(arguments)) as words:
        try:
            main(task)
        except SystemExit as error:
            said = str(error.code)
            assert said.startswith("error: "), said
            assert "\n" not in said, said
            assert "HYDRA_FULL_ERROR" not in said, said  # in the message for unforeseen errors, which has no remedy
    return Outcome(said, None if said else _content(place / result), words.getvalue())


def _content(path: Path) -> object:
    if path.suffix == ".json":
        found = read_json(path)
        return {key: found[key] for key in ("metrics", "num_steps", "seed", "nfe")}
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path) as archive:
            return {name: archive[name].tolist() for name in archive}
    return path.read_text()


COMMANDS: dict[str, tuple[Task, list[str], str]] = {
    "train again": ("train", [*SETTINGS, "var=sn_dpm", "hydra.run.dir=run"], "run/results.json"),
    "train with its cache": ("train", [*SETTINGS, "var=sn_dpm", "hydra.run.dir=new"], "new/results.json"),
    "sample": ("sample", ["run=run", "num_samples=2", "hydra.run.dir=sampled"], "sampled/samples.npz"),
    "evaluate": ("evaluate", ["run=run", "hydra.run.dir=scored"], "scored/results.json"),
    "report": ("evaluate", ["runs=run", "hydra.run.dir=report"], "report/table.csv"),
}


def finished(place: Path) -> Path:
    """Make a finished run, and its cache, in a folder."""
    task, arguments, result = COMMANDS["train again"]
    assert give(place, task, *arguments, result=result).said is None
    return place


def expected(place: Path, name: str) -> Outcome:
    """Run a command while nothing is damaged."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(place, copy, dirs_exist_ok=True)
        task, arguments, result = COMMANDS[name]
        return give(Path(copy), task, *arguments, result=result)


def problem(place: Path, file: str, damage: Callable[[Path], None], name: str, whole: Outcome) -> str | None:
    """Say what is wrong with the way a command ends when a file is damaged; None if nothing is.

    Args:
        place: the folder of a finished run and its cache, which is copied.
        file: the file to damage, relative to the folder.
        damage: one of `DAMAGES`.
        name: a name in `COMMANDS`.
        whole: the outcome of the command when nothing is damaged.
    """
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(place, copy, dirs_exist_ok=True)
        damage(Path(copy, file))
        task, arguments, result = COMMANDS[name]
        try:
            outcome = give(Path(copy), task, *arguments, result=result)
        except Exception as error:  # any exception is a finding
            return f"{type(error).__name__}: {str(error)[:200]}"
    if outcome.said is not None:
        return None if any(part in outcome.said for part in (Path(file).name, Path(file).stem)) else outcome.said
    return None if outcome.result == whole.result else "another result"


def files(place: Path) -> list[str]:
    """List all files of a finished run and its cache, except locks and logs."""
    found = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return [str(path.relative_to(place)) for path in found if path.name != ".lock"]


def run() -> None:
    """Print each problem, and the number of cases."""
    with tempfile.TemporaryDirectory() as name:
        place, cases, problems = finished(Path(name)), 0, 0
        for command in COMMANDS:
            whole = expected(place, command)
            for file in files(place):
                for damage in DAMAGES:
                    cases += 1
                    if found := problem(place, file, damage, command, whole):
                        problems += 1
                        print(f"{command}: {file} {damage.__name__}: {found}", flush=True)
        print(f"{cases} cases, {cases - problems} passed")


if __name__ == "__main__":
    run()
