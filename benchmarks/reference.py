"""The table of docs/results.md: strategies, samplers and steps on the CIFAR-10 network that comes with the package.

    python -m benchmarks.reference measure [--part 0/2] [--minutes 30]   measures what is missing, most important first
    python -m benchmarks.reference write                                 tables, plots and pictures of docs/results.md

Each cell of the table is one score of one strategy, sampler, trajectory, number of steps and seed.  It is added to
``benchmarks/results/cifar10_reference.json`` as soon as it is measured, so that a stopped command goes on where it
stopped; several processes may share the cells (``--part``).  Samples are drawn in bfloat16 and batches of 125; sample i
starts from the same x_T everywhere.  The trajectory and the clipping of an ODE solver are chosen on another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import optcov
from optcov.checkpoint import Checkpoint
from optcov.data import CIFAR10Data
from optcov.data.pixels import from_uint8
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.metric import CIFARFeatures, FrechetDistance, Reference
from optcov.reference import folder_of
from optcov.variance.base import VarianceStrategy

NETWORK = "cifar10_small"
RESULTS = Path(__file__).parent / "results" / "cifar10_reference.json"
BATCH = 125
CHOICE_SEED = 100  # of the samples on which trajectories of solvers are chosen
CLOSED = ("beta", "beta_tilde")
# one pass over training images; the settings are those of `optcov.fit`
CALIBRATED: dict[str, dict[str, Any]] = {
    "analytic": {"num_images": 64, "num_times": 200},
    "analytic_imperfect": {"num_images": 64, "num_times": 200},
    "analytic_diag": {"num_images": 512, "num_times": 50},
}
TRAINED = ("npr_dpm", "sn_dpm", "iddpm", "nll", "low_rank")
SOLVERS = ("dpm_solver_pp", "unipc", "heun")
TRAJECTORIES = ("even", "quadratic", "log_snr", "karras")
CLIPPED = ("dpm_solver_pp", "unipc")  # solvers that can clip the predicted x_0


@dataclass(frozen=True)
class Cell:
    """What one score is of.

    Args:
        score: ``fd_cifar``, or ``bits`` per dimension.
        strategy, sampler, trajectory: options of their groups.
        num_steps: K, the number of times visited.
        seed: of the samples, or of the noise of the bound.
        count: samples, or test images.
        clip_x0: whether a solver clips the predicted x_0; None for the sampler's default.
    """

    score: str
    strategy: str
    sampler: str
    trajectory: str
    num_steps: int
    seed: int
    count: int
    clip_x0: bool | None = None


class Results:
    """The measured cells, in a file that several processes may share.

    Args:
        path: of the JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(path.with_name(f".{path.name}.lock"))

    def read(self) -> dict[str, Any]:
        """The content; without a file, that of no cells."""
        return dict(json.loads(self.path.read_text())) if self.path.is_file() else {"cells": []}

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The entry of a cell; None if it is not measured."""
        wanted = asdict(cell)
        return next((each for each in self.read()["cells"] if wanted.items() <= each.items()), None)

    def add(self, network: dict[str, Any], entry: dict[str, Any]) -> None:
        """Add an entry; those of another network are refused.

        Raises:
            ValueError: if the file is of another network.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            content = self.read()
            if content.get("network", network)["sha256"] != network["sha256"]:
                raise ValueError(f"{self.path} must be of the network {network['sha256']}: move it away")
            cells = [*content["cells"], entry]
            told = {**content, "network": network, "cells": cells}
            head = json.dumps({key: value for key, value in told.items() if key != "cells"}, indent=1)
            lines = ",\n".join(f"  {json.dumps(each)}" for each in cells)
            write_atomically(self.path, f'{head.rstrip()[:-2]},\n "cells": [\n{lines}\n ]\n}}\n')


def plan(find: Callable[[Cell], dict[str, Any] | None], count: int = 2000) -> Iterator[Cell]:
    """The cells in the order in which they are measured.

    Args:
        find: the entry of a cell that is measured, from which the settings of a solver are chosen.
        count: samples of a score.
    """
    fd = Cell("fd_cifar", "beta_tilde", "ddpm", "even", 10, 0, count)
    main = ("sn_dpm", "npr_dpm", "beta_tilde", "analytic", "beta")
    for steps in (10, 5, 25):
        for sampler in ("ddpm", "ddim"):
            for name in main:
                yield replace(fd, strategy=name, sampler=sampler, num_steps=steps)
    for steps in (5, 10):
        for sampler in SOLVERS:
            yield from best(replace(fd, sampler=sampler, num_steps=steps), find)
    bits = replace(fd, score="bits", sampler="nll", count=500)
    for trajectory in ("even", "optimal"):
        for steps in (10, 25, 50, 100):
            for name in main:
                if trajectory == "even" or name == "analytic":
                    yield replace(bits, strategy=name, trajectory=trajectory, num_steps=steps)
    others = (*(name for name in CALIBRATED if name not in main), *(name for name in TRAINED if name not in main))
    for seed in (1, 2):
        for steps in (10, 5):
            for sampler in ("ddpm", "ddim"):
                for name in main:
                    yield replace(fd, strategy=name, sampler=sampler, num_steps=steps, seed=seed)
    for steps in (10, 5, 25):
        for sampler in ("ddpm", "ddim"):
            for name in others:
                if (name, sampler) != ("iddpm", "ddim"):  # a model of DDPM's step
                    yield replace(fd, strategy=name, sampler=sampler, num_steps=steps)
    for steps in (25,):
        for sampler in SOLVERS:
            yield from best(replace(fd, sampler=sampler, num_steps=steps), find)
    for steps in (50, 100):
        for sampler in ("ddpm", "ddim"):
            for name in (*main, *others):
                if (name, sampler) != ("iddpm", "ddim"):
                    yield replace(fd, strategy=name, sampler=sampler, num_steps=steps)


def best(cell: Cell, find: Callable[[Cell], dict[str, Any] | None]) -> Iterator[Cell]:
    """Trials of a solver's trajectories on another seed, then the score of the best."""
    clips: tuple[bool | None, ...] = (True, False) if cell.sampler in CLIPPED else (None,)
    steps = (cell.num_steps + 1) // 2 if cell.sampler == "heun" else cell.num_steps  # Heun calls twice in a step
    trials = [
        replace(cell, trajectory=trajectory, clip_x0=clip, num_steps=steps, seed=CHOICE_SEED, count=500)
        for trajectory in TRAJECTORIES
        for clip in clips
    ]
    yield from trials
    found = [(entry["value"], trial) for trial in trials if (entry := find(trial)) is not None]
    if len(found) == len(trials):
        trial = min(found, key=lambda each: each[0])[1]
        yield replace(trial, seed=cell.seed, count=cell.count)


class Bench:
    """Measures cells.

    Args:
        root: the folder of CIFAR-10.
        cache: where fitted strategies and statistics of training images are kept.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        data = CIFAR10Data(str(root), str(cache / "data"))
        self.train, self.test, self.cache = data.load("train"), data.load("test"), cache
        self.denoiser: Denoiser = optcov.pretrained(NETWORK).requires_grad_()  # so that autocast keeps its copies
        self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 times as fast
        checkpoint = Checkpoint.load(folder_of(NETWORK) / "checkpoints" / "mean.safetensors", "mean", "network")
        self.network = {"name": NETWORK, "sha256": sha256_of(folder_of(NETWORK)), "identity": checkpoint.key}
        self.metric = FrechetDistance(CIFARFeatures())
        self.metric.refer_to(Reference(self.train, cache / "reference"))
        self.strategies: dict[str, VarianceStrategy] = {}

    def strategy(self, name: str) -> VarianceStrategy:
        """A strategy, fitted: given with the package, found in the cache, or fitted now."""
        if name not in self.strategies:
            if name in CALIBRATED:
                folder = self.cache / f"{self.network['sha256'][:16]}-{name}"
                if (folder / "strategy.json").is_file():
                    self.strategies[name] = optcov.load_strategy(folder)
                else:
                    images = from_uint8(self.train[:: len(self.train) // 1000])
                    fitted = optcov.fit(name, self.denoiser, images, progress=False, **CALIBRATED[name])
                    fitted.save_pretrained(folder)
                    self.strategies[name] = fitted
            elif name in TRAINED:
                self.strategies[name] = optcov.pretrained(NETWORK, name)[1]
            else:
                self.strategies[name] = optcov.fit(name, self.denoiser)
        return self.strategies[name]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Score a cell; the result is its entry."""
        with torch.autocast("cpu", torch.bfloat16):
            strategy = self.strategy(cell.strategy)
            began, self.denoiser.cost = time.process_time(), type(self.denoiser.cost)()
            found = self.bits(cell, strategy) if cell.score == "bits" else self.distance(cell, strategy)
        cost = {name: getattr(self.denoiser.cost, name) / cell.count for name in ("nfe", "ne")}
        return {**asdict(cell), **found, **cost, "seconds": round(time.process_time() - began, 1)}

    def distance(self, cell: Cell, strategy: VarianceStrategy) -> dict[str, Any]:
        settings: dict[str, Any] = {} if cell.clip_x0 is None else {"clip_x0": cell.clip_x0}
        samples = optcov.sample(
            self.denoiser,
            strategy,
            cell.num_steps,
            cell.count,
            cell.sampler,
            cell.trajectory,
            cell.seed,
            batch_size=BATCH,
            progress=False,
            **settings,
        )
        self.metric.reset()
        for chunk in torch.split(samples, BATCH):
            self.metric.update(chunk)
        return {"value": round(float(self.metric.compute()["fd_cifar"].value), 4)}

    def bits(self, cell: Cell, strategy: VarianceStrategy) -> dict[str, Any]:
        images = self.test[:: len(self.test) // cell.count][: cell.count]
        score = optcov.bits_per_dim(
            self.denoiser,
            strategy,
            images,
            cell.num_steps,
            cell.trajectory,
            cell.seed,
            batch_size=BATCH,
            progress=False,
        )
        assert score.standard_error is not None
        return {"value": round(score.value, 4), "standard_error": round(score.standard_error, 4)}


def sha256_of(folder: Path) -> str:
    """The SHA-256 of the file of the mean network's weights in a run's folder."""
    import hashlib

    return hashlib.sha256((folder / "checkpoints" / "mean.safetensors").read_bytes()).hexdigest()


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{cpu or platform.processor()}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}"


def measure(arguments: argparse.Namespace) -> None:
    """Measure the missing cells of a part of the plan until the time is up."""
    part, parts = map(int, arguments.part.split("/"))
    results, until = Results(arguments.results), time.time() + 60 * arguments.minutes
    bench = Bench(arguments.data / "cifar10", arguments.cache)
    for cell in plan(results.find, arguments.count):
        if zlib.crc32(repr(cell).encode()) % parts != part or results.find(cell) is not None:
            continue
        if time.time() > until:
            break
        try:
            entry = bench.measure(cell)
        except ValueError as error:  # a pair without meaning, or a strategy that does not come with the network
            print(f"{cell}: {error}", flush=True)
            continue
        results.add(bench.network, {**entry, "machine": machine()})
        print(" ".join(f"{value}" for value in entry.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("measure", "write"))
    parser.add_argument("--part", default="0/1", help="i/n: measure the i-th of n parts, from 0")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after these")
    parser.add_argument("--count", type=int, default=2000, help="samples of a score")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPTCOV_DATA", "data")))
    parser.add_argument("--cache", type=Path, default=Path("outputs/reference"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.task == "measure":
        measure(arguments)
    else:
        from benchmarks.reference_page import write

        write(arguments.results, arguments.count)


if __name__ == "__main__":
    main()
