"""Ends commands with signals at random moments, repeats them, and compares what they leave with an undisturbed command.

Each round gives one command (a run, a sweep, sampling or an evaluation) in a folder of its own and disturbs it after a
random share of the processor time that it takes, up to three times in a row: by SIGKILL, SIGTERM, SIGINT once or twice,
or by a disk that is full from some write on.  Then the same command runs to its end.  Weights, samples, scores and
logged losses must be bitwise those of the command that nothing disturbed, and no command may end in a traceback.
Commands run in forked processes, so that only what follows the imports is disturbed.  Run it with
``python -m benchmarks.kills [COUNT] [SEED]``.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from benchmarks.damage import SETTINGS
from optcov.checkpoint import digest_of
from optcov.cli import tasks  # noqa: F401 (imported once, before processes are forked)
from optcov.cli.main import Task, main
from optcov.foreign import read_json
from optcov.report import gather, write_report  # noqa: F401 (as above)

TRAIN = [
    *(each for each in SETTINGS if not each.startswith("trainer.max_steps")), "trainer.max_steps=6",
    "trainer.log_every_n_steps=1", "checkpoint_every=2", "model.dropout=0.3", "sample_batch_size=2",
]  # fmt: skip
COMMANDS: dict[str, tuple[Task, list[str]]] = {
    "train": ("train", [*TRAIN, "var=npr_dpm", "hydra.run.dir=run"]),
    "sweep": ("train", [*TRAIN, "-m", "var=beta,npr_dpm", "hydra.sweep.dir=sweep"]),
    "sample": ("sample", ["run=run", "num_samples=6", "hydra.run.dir=sampled"]),
    "evaluate": ("evaluate", ["run=run", "num_samples=6", "hydra.run.dir=scored"]),
}
# the signals that one disturbance consists of, and the exit statuses that may follow; 0 if the command ended before
SIGNALS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "SIGKILL": ((signal.SIGKILL,), (-signal.SIGKILL,)),
    "SIGTERM": ((signal.SIGTERM,), (143,)),
    "SIGINT": ((signal.SIGINT,), (1,)),
    "SIGINT twice": ((signal.SIGINT, signal.SIGINT), (1,)),
    "full disk": ((), (1,)),
}
TICK = os.sysconf("SC_CLK_TCK")


def fill(place: Path, number: int) -> None:
    """Let every opening of a file for writing below a folder fail from the given one on, as on a full disk."""
    count = 0

    def opened(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            path, flags = arguments[0], arguments[2]
            if flags & (os.O_WRONLY | os.O_RDWR) and os.path.abspath(path).startswith(str(place)):
                count += 1
                if count >= number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(opened)  # it stays for the life of the process


def start(place: Path, name: str, full: int | None = None) -> int:
    """Start a command in a process of its own, whose words go to ``words`` in the folder; returns its id.

    Args:
        place: the folder.
        name: a name in `COMMANDS`.
        full: the write from which on the disk is full; None for never.
    """
    task, arguments = COMMANDS[name]
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        words = os.open(place / "words", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.chdir(place)
        if full is not None:
            fill(place, full)
        sys.argv = [f"{task}.py", *arguments]
        main(task)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = 1  # outside of the command
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def used(pid: int) -> float:
    """Processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def disturb(pid: int, signals: tuple[int, ...], after: float) -> int | None:
    """Send signals to a process once it has used so much processor time; returns its exit status."""
    for number in signals:
        while used(pid) < after:
            if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                return os.waitstatus_to_exitcode(ended[1])
            time.sleep(0.01)
        os.kill(pid, number)
        after += 0.05
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def left(place: Path, name: str) -> dict[str, object]:
    """What a command left that must not depend on disturbances: weights, samples, scores and losses."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        key = str(path.relative_to(place))
        if key.startswith("outputs"):  # the cache
            continue
        if path.suffix == ".safetensors":
            found[key] = digest_of(load_file(path))
        elif path.name == "results.json":
            found[key] = {each: read_json(path)[each] for each in ("metrics", "times", "nfe", "overrides")}
        elif path.suffix == ".npz":
            with np.load(path) as archive:
                found[key] = {each: hashlib.sha256(archive[each].tobytes()).hexdigest() for each in archive}
        elif path.name == "metrics.csv":
            with path.open() as file:
                rows = [{each: value for each, value in row.items() if value} for row in csv.DictReader(file)]
            if name == "sweep":  # jobs share fits, and the one that goes on with a fit logs it
                key = "metrics.csv of all jobs"
            seen = found.get(key, set())
            assert isinstance(seen, set)
            found[key] = seen | {str(sorted(row.items())) for row in rows}
        elif path.suffix in (".png", ".csv", ".tex", ".md", ".html") and path.is_file():
            found[key] = "there"
    return found


def compared(place: Path, name: str, whole: dict[str, object]) -> str | None:
    """End a command, and say what is wrong with what it left; None if nothing is."""
    status = os.waitstatus_to_exitcode(os.waitpid(start(place, name), 0)[1])
    if status:
        return f"the repeat ends with {status}: {(place / 'words').read_text()[-300:]!r}"
    now = left(place, name)
    wrong = sorted(key for key in now.keys() | whole.keys() if now.get(key) != whole.get(key))
    return f"other content: {', '.join(wrong)}" if wrong else None


def run(count: int, seed: int, say: Callable[[str], object] = print) -> int:
    """Disturb commands ``count`` times; prints each problem and the number of each kind, returns that of problems."""
    chance, sent, problems = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        bases: dict[str, Path] = {}
        wholes: dict[str, dict[str, object]] = {}
        seconds: dict[str, float] = {}
        while sum(sent.values()) < count:
            name, kind = chance.choice(list(COMMANDS)), chance.choice(list(SIGNALS))
            if not bases:
                for each in COMMANDS:  # of train, the first, is the run that others work on
                    bases[each] = Path(folder, "none" if each in ("train", "sweep") else "base")
                    place = Path(folder, f"whole_{each}")
                    bases[each].mkdir(exist_ok=True)
                    shutil.copytree(bases[each], place)
                    pid = start(place, each)
                    _, ended, usage = os.wait4(pid, 0)
                    assert ended == 0, (place / "words").read_text()
                    wholes[each], seconds[each] = left(place, each), usage.ru_utime + usage.ru_stime
                    if each == "train":
                        shutil.copytree(place, Path(folder, "base"))
            place = Path(folder, "disturbed")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(bases[name], place)
            signals, statuses = SIGNALS[kind]
            problem = None
            for _ in range(chance.choice((1, 2, 3))):
                share = chance.random()
                full = chance.randrange(1, 30) if kind == "full disk" else None
                status = disturb(start(place, name, full), signals, share * seconds[name])
                if status == 0:
                    sent["ended before"] += 1
                    break
                sent[f"{kind} to {name}"] += 1
                words = (place / "words").read_text() if (place / "words").exists() else ""
                if status not in statuses or "Traceback" in words:
                    after = f"{share:.0%}" if full is None else f"{full - 1} writes"
                    problem = f"ends with {status} after {after}: {words[-300:]!r}"
                    break
            problem = problem or compared(place, name, wholes[name])
            if problem is not None:
                problems += 1
                say(f"{name}, {kind}: {problem}")
            kinds = ", ".join(f"{number} {each}" for each, number in sorted(sent.items()))
            say(f"{sum(sent.values())} disturbances, {problems} problems: {kinds}")
    return problems


if __name__ == "__main__":
    count, seed = (int(given) if given else default for given, default in zip_longest(sys.argv[1:], (100, 0)))
    sys.exit(run(count, seed) > 0)
