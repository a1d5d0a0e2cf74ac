"""Measures the seconds from ``python train.py`` to the end of the first training step."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.timing import Row, Settings, resident

ROOT = Path(__file__).parents[1]


class FirstStep(Callback):
    """Reports when the first step ended, and ends the process there."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        told = {"seconds": time.time() - float(os.environ["STARTED"]), "peak": resident("VmHWM")}
        print(json.dumps(told), flush=True)
        os._exit(0)


def startup(settings: Settings) -> Iterator[Row]:
    """Seconds from ``train.py``, with its defaults except for the logger, to the end of its first step."""
    told = []
    for _ in range(settings.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ran = subprocess.run(
                [sys.executable, "train.py", "logger=csv", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run",
                 "+callbacks.first._target_=benchmarks.startup.FirstStep"],
                cwd=ROOT, env={**os.environ, "STARTED": str(time.time())}, capture_output=True, text=True, check=True,
                timeout=300,
            )  # fmt: skip
        told.append(json.loads(ran.stdout.splitlines()[-1]))
    seconds = [each["seconds"] for each in told]
    yield Row(
        "start-up",
        "train.py to its first step",
        statistics.median(seconds),
        unit="s",
        ratio=statistics.median(seconds),
        low=min(seconds),
        high=max(seconds),
        goal="<= 6",
        peak_ours=told[-1]["peak"],
        note="ratio in seconds",
    )
