"""Measures the peak memory of `evaluate.py` against the number of samples it draws and scores, on 32 x 32 images.

Run it with ``python -m benchmarks.memory`` on Linux; it takes minutes.  One process makes all evaluations, so that what
grows with the count adds up.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from optcov.cli.main import Task, main

COUNTS = (1000, 10_000, 50_000)
NETWORK = [
    "data=image_folder", "data.root=images", "data.image_size=32", "data.channels=1", "data.batch_size=8",
    "model=unet", "model.channels=4", "model.patch=2", "model.channel_mult=[1]", "model.attention_resolutions=[]",
    "model.middle_attention=false", "optimizer=adamw", "trainer=cpu", "trainer.max_steps=2", "var=beta", "logger=csv",
    "sampler.num_steps=2", "num_samples=100", "sample_batch_size=500",
]  # fmt: skip


def run(task: Task, arguments: list[str]) -> None:
    """Run a command in this process."""
    sys.argv = [f"{task}.py", *arguments]
    main(task)


def peak() -> float:
    """The largest resident memory since the last `forget`, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget() -> None:
    """Let the kernel begin to measure the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measure() -> list[tuple[int, float]]:
    """The peak of each count, in MiB."""
    Path("images").mkdir()
    for i in range(64):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{i}.png")
    run("train", [*NETWORK, "hydra.run.dir=run"])
    found = []
    for count in COUNTS:
        forget()
        run("evaluate", ["run=run", f"num_samples={count}", "metric=fd_pixel", f"hydra.run.dir=of_{count}"])
        found.append((count, peak()))
        print(f"{count} samples: peak {found[-1][1]:.0f} MiB", flush=True)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        measure()
        os.chdir("/")
