"""Kills the main process of a fit with SIGKILL, and measures how long its other processes live.

W&B's service (offline) and the other ranks of two kinds of data-parallel training must end by themselves.  Run it with
``python -m benchmarks.orphans``; it takes two minutes.  Linux only: processes are found by a variable of their
environment, for they may have left the group of their parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.damage import SETTINGS

LIMIT = 60.0  # seconds
MARK = "OPTCOV_DRILL"
FIT = [
    *(each for each in SETTINGS if not each.startswith(("trainer.max_steps", "logger"))), "trainer.max_steps=1000000",
    "checkpoint_every=20", "var=beta", "hydra.run.dir=run",
]  # fmt: skip
DRILLS = {
    "W&B, offline": ["logger=wandb", "logger.wandb.mode=offline"],
    "ddp": ["logger=csv", "trainer.devices=2", "trainer.strategy=ddp"],
    "ddp_fork": ["logger=csv", "trainer.devices=2", "trainer.strategy=ddp_fork"],
}


def living(mark: str) -> list[int]:
    """The processes that a drill started, directly or not."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has just ended, or belongs to someone else
            continue
    return found


def drill(place: Path, arguments: list[str]) -> tuple[int, float]:
    """Kill a fit once it has a checkpoint.

    Returns:
        The number of its other processes, and the seconds until the last of them ended; infinity if one did not.
    """
    command, mark = [sys.executable, "-m", "optcov", "train", *FIT, *arguments], place.name
    with (place / "words").open("w") as words:
        fit = subprocess.Popen(command, cwd=place, env=os.environ | {MARK: mark}, stdout=words, stderr=words)
    while not list(place.rglob("resume.ckpt")):
        assert fit.poll() is None, (place / "words").read_text()
        time.sleep(0.2)
    others = len(living(mark)) - 1
    fit.kill()
    fit.wait()
    began = time.monotonic()
    while left := living(mark):
        if time.monotonic() - began > LIMIT:
            for process in left:
                os.kill(process, signal.SIGKILL)
            return others, float("inf")
        time.sleep(0.1)
    return others, time.monotonic() - began


def run() -> int:
    """Print a line for each drill; returns the number of those after which a process stayed."""
    stayed = 0
    for name, arguments in DRILLS.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            others, seconds = drill(Path(folder), arguments)
        stayed += seconds > LIMIT
        print(f"{name}: the last of {others} other processes ended after {seconds:.1f} s", flush=True)
    return stayed


if __name__ == "__main__":
    sys.exit(run() > 0)
