"""Puts a run's network, and what was fitted to it, into the package, in 16 bits.

    python -m benchmarks.reference_export RUN [RUN ...]

The mean network is that of the first run, and so is the config; each run adds the variance that it fitted.  See
`optcov.reference` for what becomes of the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from optcov.checkpoint import Checkpoint, Kind
from optcov.keys import Config
from optcov.reference import EXPERIMENTS, folder_of
from optcov.run_folder import Saved, write_config

LIMIT = 20_000_000  # bytes of all weights


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floats in half precision; statistics in float64 stay as they are.

    Raises:
        ValueError: if a weight is too large for half precision.
    """
    found = {name: each.half() if each.dtype == torch.float32 else each for name, each in weights.items()}
    for name, each in found.items():
        if each.is_floating_point() and not each.isfinite().all():
            raise ValueError(f"{name} must be finite in half precision (got infinity): keep it in float32")
    return found


def put(path: Path, kind: Kind, target: Path) -> None:
    """Copy a checkpoint in half precision; what identifies it stays the same."""
    found = Checkpoint.load(path, kind, "run")
    Checkpoint(kind, found.identity, halved(found.weights)).save(target)


def write_losses(log: Path, target: Path) -> None:
    """Keep the losses of the mean network from a run's log."""
    frame = pd.read_csv(log, dtype=str).dropna(subset=["mean/loss"])
    frame[["step", "mean/loss"]].to_csv(target, index=False)


def export(runs: list[Path], folder: Path) -> None:
    """Write the folder of a network that comes with the package.

    Raises:
        ValueError: if the weights are larger than 20 MB.
    """
    checkpoints = folder / "checkpoints"
    for index, run in enumerate(runs):
        saved = Saved.read(run)
        if index == 0:
            put(run / "checkpoints" / "mean.safetensors", "mean", checkpoints / "mean.safetensors")
            data = saved.values["data"] | {"root": "data/cifar10", "cache_dir": "outputs/cache/data"}
            places = {"cache_dir": "outputs/cache", "output_dir": ".", "data": data, "mean_ckpt": None, "logger": {}}
            write_losses(run / "metrics.csv", folder / "metrics.csv")
            write_config(folder, Config.model_validate(saved.values | places | {"choices": saved.choices}))
        variance = run / "checkpoints" / "variance.safetensors"
        if variance.is_file():
            put(variance, "variance", checkpoints / f"{saved.choices['var']}.safetensors")
    size = sum(path.stat().st_size for path in checkpoints.glob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"{folder} must hold at most {LIMIT:,} bytes of weights (got {size:,}): leave some out")
    print(f"{folder}: {size:,} bytes of weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py printed")
    parser.add_argument("--folder", type=Path, default=folder_of(next(iter(EXPERIMENTS))), help="where to write")
    arguments = parser.parse_args()
    export(arguments.runs, arguments.folder)


if __name__ == "__main__":
    main()
