"""Tries random command lines of ``train.py``, in this process, up to the point at which it would begin to fit.

Each must either be accepted or be refused in one line, which must not be the message for unforeseen exceptions.  Run it
with ``python -m benchmarks.command_lines [COUNT] [SEED]``; a thousand take some minutes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.damage import SETTINGS, _at
from optcov.cli.main import main
from optcov.keys import KEYS
from optcov.registry import options

KINDS = [
    "", "null", "true", "0", "-1", "1", "2", "3", "1e9", "1e30", "99999999999999999999", "0.5", "-0.1", "1.0", "nan",
    "inf", "-inf", "[]", "[0]", "[-1]", "[nan]", "[1,2]", "[[1],[2]]", "{}", "{a:1}", "{_target_:os.system}", "x", "é",
    "' '", "''", "'a b'", "a/b", "../x", "/", ".", "~", "${seed}", "${nope}", "${oc.env:NOPE}", "${hydra:job.name}",
    "???", "'${'", "\\${x}", "'\\''", "\"", "a,b", "1,2", "range(1,3)", "choice(1,2)", "os.system", "optcov.model.UNet",
    "optcov.sampler.DDIMSampler", "optcov.files.write_atomically", "lightning.Trainer", "x" * 3000, "[" * 60, "0x10",
    "1_000", "1e", "=", "==", "@", "-", "\n", "\t", "\x1b[31m",
]  # fmt: skip


class _ReachedError(Exception):
    """The command line was accepted."""


def keys() -> list[str]:
    """List every key of the config, keys inside groups, and some that do not exist."""
    from optcov.registry import node

    found = [key for key in KEYS if key not in ("overrides", "choices", "sweep")]
    for group in ("model", "sampler", "schedule", "trainer", "optimizer", "data", "trajectory", "var", "guidance"):
        for name in options(group)[:3]:
            content = node(group, name)
            found += [f"{group}.{key}" for key in content if isinstance(key, str) and "." not in key]
    found += ["callbacks.ema", "callbacks.ema.decay", "callbacks.x", "logger.csv", "logger.x", "metric.fd_pixel"]
    found += ["nope", "model.nope", "hydra.run.dir", "hydra.nope", "hydra/launcher", "a b", "", ".", "model.", "1"]
    trainer = ("max_epochs", "fast_dev_run", "limit_train_batches", "callbacks", "plugins", "profiler", "devices")
    return list(dict.fromkeys([*found, *(f"trainer.{name}" for name in trainer)]))


def line(chance: random.Random) -> list[str]:
    """Draw a random command line of one or two overrides."""
    known = keys()
    found = []
    for _ in range(chance.choice((1, 1, 2))):
        prefix = chance.choice(("", "", "", "+", "++", "~"))
        key = chance.choice(known)
        value = chance.choice(KINDS)
        group = key in KEYS and chance.random() < 0.2 and options(key)
        found.append(f"{prefix}{key}={chance.choice(group) if group else value}")
    return found


def verdict(arguments: list[str]) -> str:
    """Say how a command line ends: ``accepted``, ``refused``, or what is wrong with the way it ended."""

    def reached(*args: Any, **kwargs: Any) -> None:
        raise _ReachedError

    try:
        with (
            patch("optcov.cli.tasks.open_run_folder", reached),
            tempfile.TemporaryDirectory() as name,
            _at(Path(name), "train", [*SETTINGS, *arguments]),
        ):
            main("train")
    except SystemExit as error:
        said = str(error.code)
        if "_ReachedError" in said:
            return "accepted"
        if not said.startswith("error: ") or "\n" in said or not said.isprintable():
            return f"not one line: {said[:200]!r}"
        return f"last resort: {said[:200]}" if "HYDRA_FULL_ERROR" in said else "refused"
    except BaseException as error:  # any exception is a finding
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    return "ended without a word"


def run(count: int, seed: int) -> None:
    """Print each command line that ends wrongly, and the number of each kind of end."""
    chance, found = random.Random(seed), Counter[str]()
    for _ in range(count):
        arguments = line(chance)
        said = verdict(arguments)
        found[said.partition(":")[0]] += 1
        if said not in ("accepted", "refused"):
            print(f"{arguments!r:.200}: {said}", flush=True)
    print(", ".join(f"{number} {name}" for name, number in found.most_common()))


if __name__ == "__main__":
    run(*(int(each) for each in (*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :])))
