"""The table of docs/results.md: strategies, samplers and steps on the CIFAR-10 network that comes with the package.

    python -m benchmarks.reference measure [--part 0/2] [--minutes 30]   measures what is missing, most important first
    python -m benchmarks.reference write                                 the tables of docs/results.md and its plot
    python -m benchmarks.reference picture                               samples side by side, and curves of variance

Each cell of the table is one score of one strategy, sampler, trajectory, number of steps and seed.  It is added to
``benchmarks/results/cifar10_reference.json`` as soon as it is measured, so that a stopped command goes on where it
stopped; several processes may share the cells (``--part``).  Samples are drawn in bfloat16 and batches of 125; sample i
starts from the same x_T everywhere.  The trajectory and the clipping of an ODE solver are chosen on another seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from PIL import Image

import optcov
from benchmarks.reference_page import CHOICE_SEED, COUNT, MANY, write
from optcov.checkpoint import Checkpoint
from optcov.data import CIFAR10Data
from optcov.data.pixels import from_uint8, to_uint8
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.metric import CIFARFeatures, FrechetDistance, Reference
from optcov.reference import folder_of
from optcov.report import plot_variance
from optcov.report.picture import sample_grid, tile
from optcov.variance.base import VarianceStrategy
from optcov.variance.profile import variance_profile

NETWORK = "cifar10_small"
RESULTS = Path(__file__).parent / "results" / "cifar10_reference.json"
BATCH = 125
TRIAL, BOUND = 250, 200  # samples that a trajectory is chosen by, and test images of a bound
MAIN = ("sn_dpm", "npr_dpm", "beta_tilde", "analytic", "beta")
# one pass over training images; the settings are those of `optcov.fit`
CALIBRATED: dict[str, dict[str, Any]] = {
    "analytic": {"num_images": 64, "num_times": 200},
    "analytic_imperfect": {"num_images": 64, "num_times": 200},
    "analytic_diag": {"num_images": 512, "num_times": 50},
}
SHIPPED = ("npr_dpm", "sn_dpm", "npr_dpm_simple", "sn_dpm_simple")  # heads that come with the network
TRAINED: dict[str, dict[str, Any]] = {
    "iddpm": {"steps": 400, "lr": 5e-3, "head": "complex"},
    "nll": {"steps": 400, "lr": 5e-3, "head": "complex"},
    "low_rank": {"steps": 400, "lr": 5e-3, "head": "complex", "rank": 8},
}
SOLVERS = ("dpm_solver_pp", "unipc", "ipndm", "deis", "heun")
TRAJECTORIES = ("even", "quadratic", "log_snr", "karras")
CLIPPED = ("dpm_solver_pp", "unipc")  # solvers that can clip the predicted x_0
NOISY = ("dpm_solver_pp", "deis")  # solvers on whose means the covariances of `NOISES` are tried, in a balanced share
NOISES = ("npr_dpm", "low_rank")
SEEDS = (0, 1, 2)


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
        noise: the share of noise added to a multistep mean; None for a sampler without that choice, or its default.
    """

    score: str
    strategy: str
    sampler: str
    trajectory: str
    num_steps: int
    seed: int
    count: int
    clip_x0: bool | None = None
    noise: str | None = None


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
        wanted = asdict(cell).items()
        return next((each for each in self.read()["cells"] if all(each.get(key) == it for key, it in wanted)), None)

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


def plan(find: Callable[[Cell], dict[str, Any] | None]) -> Iterator[Cell]:
    """The cells in the order in which they are measured: `COUNT` samples, or `MANY` of each of `SEEDS` at few steps.

    Args:
        find: the entry of a cell that is measured, from which the settings of a solver are chosen.
    """
    fd = Cell("fd_cifar", "beta_tilde", "ddpm", "even", 10, 0, COUNT)
    bits = replace(fd, score="bits", sampler="nll", count=BOUND)
    others = (
        *(name for name in CALIBRATED if name not in MAIN),
        *(name for name in SHIPPED if name not in MAIN),
        *TRAINED,
    )

    def table(steps: int, names: Sequence[str], seed: int = 0, count: int = COUNT) -> Iterator[Cell]:
        for sampler in ("ddpm", "ddim"):
            for name in names:
                if (name, sampler) != ("iddpm", "ddim"):  # a model of DDPM's step
                    yield replace(fd, strategy=name, sampler=sampler, num_steps=steps, seed=seed, count=count)

    def bounds(steps: int, names: Sequence[str] = MAIN) -> Iterator[Cell]:
        for name in names:
            yield replace(bits, strategy=name, num_steps=steps)
        yield replace(bits, strategy="analytic", trajectory="optimal", num_steps=steps)

    def rivals(steps: int, count: int = COUNT, seeds: Sequence[int] = (0,)) -> Iterator[Cell]:
        for sampler in SOLVERS:
            yield from best(replace(fd, sampler=sampler, num_steps=steps, count=count), find, seeds)
        for sampler in NOISY:
            for name in NOISES:
                noisy = replace(fd, strategy=name, sampler=sampler, num_steps=steps, count=count, noise="balanced")
                yield from best(noisy, find, seeds)

    yield from (*table(10, MAIN), *table(5, MAIN), *bounds(10), *bounds(25))
    yield from table(25, MAIN)
    for seed in SEEDS:
        yield from (*table(10, MAIN, seed, MANY), *table(5, MAIN, seed, MANY))
        if seed == 0:
            yield from (*rivals(10), *rivals(5), *table(10, others), *table(5, others))
    yield from (*bounds(10, others), *bounds(50), *bounds(100), *table(25, others))
    yield from (*rivals(5, MANY, SEEDS), *rivals(10, MANY, SEEDS), *rivals(25))
    yield from (*table(50, MAIN), *table(100, MAIN))
    yield from (*table(50, others), *table(100, others))


def best(cell: Cell, find: Callable[[Cell], dict[str, Any] | None], seeds: Sequence[int] = (0,)) -> Iterator[Cell]:
    """Trials of a solver's trajectories on another seed, then the scores of the best."""
    clips: tuple[bool | None, ...] = (True, False) if cell.sampler in CLIPPED else (None,)
    steps = (cell.num_steps + 1) // 2 if cell.sampler == "heun" else cell.num_steps  # Heun calls twice in a step
    trials = [
        replace(cell, trajectory=trajectory, clip_x0=clip, num_steps=steps, seed=CHOICE_SEED, count=TRIAL)
        for trajectory in TRAJECTORIES
        for clip in clips
    ]
    yield from trials
    found = [(entry["value"], trial) for trial in trials if (entry := find(trial)) is not None]
    if len(found) == len(trials):
        trial = min(found, key=lambda each: each[0])[1]
        yield from (replace(trial, seed=seed, count=cell.count) for seed in seeds)


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
            settings = (CALIBRATED | TRAINED).get(name)
            if settings is not None:
                folder = self.cache / f"{self.network['sha256'][:16]}-{name}"
                if (folder / "strategy.json").is_file():
                    self.strategies[name] = optcov.load_strategy(folder)
                else:
                    every = len(self.train) // 1000 if name in CALIBRATED else 1
                    images = from_uint8(self.train[::every])
                    fitted = optcov.fit(name, self.denoiser, images, progress=False, **settings)
                    fitted.save_pretrained(folder)
                    self.strategies[name] = fitted
            elif name in SHIPPED:
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
        given = {"clip_x0": cell.clip_x0, "noise": cell.noise}
        settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
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

    def picture(self, path: Path, columns: int = 8) -> None:
        """Samples from the same noise: a row a strategy, a block a number of steps."""
        cells: dict[tuple[str, int], Image.Image] = {}
        for sampler in ("ddpm", "ddim"):
            for name in MAIN:
                for steps in (5, 10, 25):
                    with torch.autocast("cpu", torch.bfloat16):
                        drawn = optcov.sample(
                            self.denoiser, self.strategy(name), steps, columns, sampler, seed=0, progress=False
                        )
                    cells[f"{sampler} {name}", steps] = tile(to_uint8(drawn)[None], scale=1)
        sample_grid(cells, side=33 * columns).save(path)

    def curves(self, path: Path) -> None:
        """The variance of every fitted strategy over time, of steps of 1/10."""
        images, made = from_uint8(self.train[:64]), {}
        for name in MAIN:
            with torch.autocast("cpu", torch.bfloat16):
                profile = variance_profile(self.denoiser, self.strategy(name), images, 0.1)
            made[name] = pd.DataFrame({key: value.numpy() for key, value in profile.items()})
        plot_variance(made, path)


def sha256_of(folder: Path) -> str:
    """The SHA-256 of the file of the mean network's weights in a run's folder."""
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
    left_out: set[str] = set()

    def measured() -> bool:
        """Measure the most important missing cell; False if there is none."""
        for cell in plan(results.find):
            if zlib.crc32(repr(cell).encode()) % parts != part or results.find(cell) is not None:
                continue
            try:
                entry = bench.measure(cell)
            except ValueError as error:  # a pair without meaning, or a head that does not come with the network yet
                if repr(error) not in left_out:
                    print(f"left out: {error}", flush=True)
                left_out.add(repr(error))
                continue
            results.add(bench.network, {**entry, "machine": machine()})
            print(" ".join(f"{value}" for value in entry.values()), flush=True)
            return True
        return False

    while time.time() < until and measured():
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("measure", "write", "picture"))
    parser.add_argument("--part", default="0/1", help="i/n: measure the i-th of n parts, from 0")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after these")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPTCOV_DATA", "data")))
    parser.add_argument("--cache", type=Path, default=Path("outputs/reference"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.task == "measure":
        measure(arguments)
    elif arguments.task == "picture":
        bench, images = (
            Bench(arguments.data / "cifar10", arguments.cache),
            Path(__file__).parents[1] / "docs" / "images",
        )
        bench.picture(images / "cifar10.png")
        bench.curves(images / "cifar10_variance.png")
    else:
        write(arguments.results)


if __name__ == "__main__":
    main()
