r"""Restores CIFAR-10 images with the network that comes with the package, by our strategies and by its rivals.

    python -m benchmarks.restored_cifar10 measure [--minutes 20]      measures the cells that are missing
    python -m benchmarks.restored_cifar10 write                       the table of docs/inverse.md

Tasks are inpainting (the central 16 x 16 pixels are hidden) and super-resolution (means of 4 x 4 pixels), with noise of
0.1 on [-1, 1], for 16 test images with 8 samples each.  All methods take quadratic DDPM steps, as many as the budget of
network equivalents (NE) allows, in bfloat16, and x_0 is clipped; DiffPIR clips nothing.  Each cell is added to
``benchmarks/results/cifar10_restored.json`` as soon as it is measured.

    psnr   of the mean of the samples, in dB, on the values that are scored: hidden ones for inpainting, else all
    crps   continuous ranked probability score of the truth, unbiased
    c90    share of the truth within the 90 % interval of Student's t around the mean of the 8 samples, in %
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from benchmarks.reference import NETWORK
from benchmarks.reference_page import filled
from benchmarks.restored_digits import NOISE, theirs
from optcov.data import CIFAR10Data
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.inverse import BlockAverage, Mask, Operator
from optcov.posterior import rivals
from optcov.posterior.rivals import Method
from optcov.posterior.scores import against
from optcov.variance.base import VarianceStrategy
from optcov.variance.lgs import LGS

RESULTS = Path(__file__).parent / "results" / "cifar10_restored.json"
PAGE = Path(__file__).parents[1] / "docs" / "inverse.md"
EVENT, COUNT, MEASUREMENTS, BUDGETS = (3, 32, 32), 8, 16, (10, 25)
TUNED_ON, TUNED_COUNT = range(16, 20), 4  # test images on which rivals are tuned, and samples of each
STUDENT = 1.8946  # the 95 % point of Student's t with 7 degrees of freedom
FITTED: dict[str, tuple[str, int | None, dict[str, Any]]] = {  # option of var, gradient steps, settings
    "data_cov": ("data_cov", None, {"num_images": 20_000}),
    "dct": ("dct", None, {"num_images": 32, "num_times": 20}),
    "low_rank": ("low_rank", 100, {"rank": 16, "head": "complex"}),
}
LGS_STEPS = 2  # Lanczos steps of a draw; a solution takes one
DIFFPIR = {f"{w:g} {z:g}": rivals.diffpir(w, z) for w in (1.0, 8.0) for z in (0.3, 1.0)}
DPS = {f"{size:g}": rivals.dps(size) for size in (0.3, 1.0, 3.0)}
RIVALS: dict[str, tuple[Method | dict[str, Method], int]] = {  # method, network equivalents a step
    "pi_gdm": (rivals.pi_gdm, 3),
    "mmps_1": (rivals.mmps(1), 5),
    "ddnm": (rivals.ddnm, 1),
    "diffpir": (DIFFPIR, 1),
    "dps": (DPS, 3),
}
OURS = {"npr_dpm": 1, "data_cov": 1, "dct": 1, "low_rank": 1, "lgs": 7}  # network equivalents a step
NAMES = {
    "npr_dpm": "`npr_dpm`, as it comes",
    "data_cov": "`data_cov`",
    "dct": "`dct`",
    "low_rank": "`low_rank`, 100 gradient steps",
    "lgs": "`lgs`, solutions of one step",
    "pi_gdm": "Pi-GDM",
    "mmps_1": "MMPS, CG 1",
    "ddnm": "DDNM+",
    "diffpir": "DiffPIR, tuned",
    "dps": "DPS, tuned",
}


@dataclass
class Task:
    """Measurements of test images.

    Args:
        operator: A.
        scored: values that are scored, flat.
        truth: ``[n, 3, 32, 32]`` in [-1, 1].
        y: ``[n, *measurement]``.
    """

    operator: Operator
    scored: Tensor
    truth: Tensor
    y: Tensor

    @classmethod
    def made(cls, name: str, images: Tensor, seed: int) -> Task:
        """Make a task by name, ``inpaint`` or ``superres``."""
        hidden = torch.zeros(32, 32)
        hidden[8:24, 8:24] = 1
        operator: Operator = Mask(EVENT, 1 - hidden) if name == "inpaint" else BlockAverage(EVENT, 4)
        scored = hidden.expand(EVENT).flatten() > 0 if name == "inpaint" else torch.ones(3072) > 0
        y = operator(images)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
        return cls(operator, scored, images, y + NOISE * noise)

    def scores(self, samples: Tensor) -> dict[str, list[float]]:
        """Score samples ``[n, count, 3, 32, 32]``: each score's mean over the images, and its standard error."""
        truth, samples = self.truth.flatten(1)[:, self.scored], samples.flatten(2)[..., self.scored]
        mean, count = samples.mean(1), samples.shape[1]
        reach = STUDENT * samples.std(1) * (1 + 1 / count) ** 0.5
        found = {
            "psnr": -10 * ((mean - truth) ** 2).mean(1).div(4).log10(),
            "crps": against(truth, samples)["crps"],
            "c90": 100 * ((truth - mean).abs() <= reach).double().mean(1),
        }
        return {key: [float(each.mean()), float(each.std() / len(each) ** 0.5)] for key, each in found.items()}


def images_of(data: CIFAR10Data, indices: range) -> Tensor:
    """Test images in [-1, 1], ``[n, 3, 32, 32]``."""
    return data.normalize(data.load("test")[list(indices)])


def strategy_of(name: str, denoiser: Denoiser, data: CIFAR10Data, cache: Path) -> VarianceStrategy:
    """A strategy for the network that comes with the package: its own, or fitted here and kept in a folder."""
    if name == "npr_dpm":
        return optcov.pretrained(NETWORK, name)[1]
    if name == "lgs":
        return LGS(denoiser, LGS_STEPS, 0.01)
    if not (cache / name).exists():
        option, steps, settings = FITTED[name]
        images = data.normalize(data.load("train")[: settings.get("num_images", 20_000)])
        optcov.fit(option, denoiser, images, steps, progress=False, **settings).save_pretrained(cache / name)
    return optcov.load_strategy(cache / name, denoiser)


def cells() -> Iterator[tuple[str, int, str, int]]:
    """Yield task, budget, method and number of steps, by budget, and last the one whose solutions take minutes."""
    costs = OURS | {name: each[1] for name, each in RIVALS.items()}
    found = [
        (task, budget, name, budget // cost)
        for budget in BUDGETS
        for task in ("inpaint", "superres")
        for name, cost in costs.items()
        if budget // cost >= 2
    ]
    yield from sorted(found, key=lambda cell: (cell[1], (cell[0], cell[2]) == ("inpaint", "data_cov")))


def drawn(denoiser: Denoiser, task: Task, name: str, steps: int, strategy: VarianceStrategy | None) -> Tensor:
    """Draw samples with one of our strategies."""
    assert strategy is not None
    return optcov.restore(
        denoiser, strategy, task.y, task.operator, NOISE, COUNT, steps,
        solver_steps=1 if name == "lgs" else 50, batch_size=COUNT * MEASUREMENTS, progress=False,
    ).samples  # fmt: skip


def tuned(denoiser: Denoiser, other: Task, choices: dict[str, Method], steps: int) -> str:
    """The choice with the lowest CRPS on other images."""
    scored = {
        name: other.scores(theirs(denoiser, other.operator, other.y, method, TUNED_COUNT, steps, 1))["crps"][0]
        for name, method in choices.items()
    }
    return min(scored, key=lambda name: scored[name] if scored[name] == scored[name] else float("inf"))


def measure(data: CIFAR10Data, cache: Path, minutes: float) -> None:
    """Measure the cells that are missing, until the time is over."""
    started = time.monotonic()
    denoiser: Denoiser = optcov.pretrained(NETWORK).requires_grad_()  # so that autocast keeps its copies
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    truth, other = images_of(data, range(MEASUREMENTS)), images_of(data, TUNED_ON)
    strategies: dict[str, VarianceStrategy] = {}
    for task_name, budget, name, steps in cells():
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        key = f"{task_name} {budget} {name}"
        if key in known:
            continue
        if time.monotonic() - started > 60 * minutes:
            print("time is over: the same command goes on")
            return
        task, cell = Task.made(task_name, truth, 0), dict[str, Any](steps=steps)
        draw: Callable[[], Tensor]
        if name in OURS:
            if name not in strategies:
                strategies[name] = strategy_of(name, denoiser, data, cache)
            strategy = strategies[name]
            draw = lambda: drawn(denoiser, task, name, steps, strategy)  # noqa: B023, E731
        else:
            method = RIVALS[name][0]
            if isinstance(method, dict):
                cell["choice"] = choice = tuned(denoiser, Task.made(task_name, other, 1), method, steps)
                method = method[choice]
            draw = lambda: theirs(denoiser, task.operator, task.y, method, COUNT, steps)  # noqa: B023, E731
        denoiser.cost.reset()
        begun = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            samples = draw().float()
        total = MEASUREMENTS * COUNT
        calls = denoiser.cost.ne if name in OURS else denoiser.cost.ne - denoiser.cost.nfe + steps * total
        cell |= {"ne": calls / total, "cpu_ms": 1000 * (time.process_time() - begun) / total}
        cell |= task.scores(samples)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_atomically(RESULTS, json.dumps(known | {key: cell}, indent=1) + "\n")
        print(key, {k: [round(x, 3) for x in v] if isinstance(v, list) else v for k, v in cell.items()}, flush=True)


def table(known: dict[str, Any], task: str) -> str:
    """The table of a task in Markdown; the best CRPS of a budget is bold."""
    lines = ["| | " + " | ".join(f"NE {b}: PSNR | CRPS | 90 % | ms" for b in BUDGETS) + " |"]
    lines.append("|---" * (1 + 4 * len(BUDGETS)) + "|")
    best = {b: min(v["crps"][0] for k, v in known.items() if k.startswith(f"{task} {b} ")) for b in BUDGETS}
    for name, label in NAMES.items():
        columns = []
        for budget in BUDGETS:
            cell = known.get(f"{task} {budget} {name}")
            if cell is None:
                columns += [""] * 4
                continue
            crps = f"{cell['crps'][0]:.3f}"
            crps = f"**{crps}**" if cell["crps"][0] == best[budget] else crps
            columns += [f"{cell['psnr'][0]:.1f}", f"{crps} ± {cell['crps'][1]:.3f}"]
            columns += [f"{cell['c90'][0]:.0f}", f"{cell['cpu_ms']:.0f}"]
        lines.append(f"| {label} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def write() -> None:
    """Put the tables into the page."""
    known = json.loads(RESULTS.read_text())
    made = {f"cifar10 {task}": table(known, task) for task in ("inpaint", "superres")}
    PAGE.write_text(filled(PAGE.read_text(), made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "write"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with cifar10")
    parser.add_argument("--cache", type=Path, default=Path("outputs/restored_cifar10"), help="for fitted strategies")
    parser.add_argument("--minutes", type=float, default=1e9, help="no cell is begun after this time")
    args = parser.parse_args()
    if args.command == "write":
        write()
    else:
        measure(CIFAR10Data(str(args.data / "cifar10"), str(args.cache / "data")), args.cache, args.minutes)


if __name__ == "__main__":
    main()
