r"""Restores real held-out digits with a learned network, by fitted strategies and by its rivals.

    python -m benchmarks.restored_digits measure [RUN]    measures the cells that are missing
    python -m benchmarks.restored_digits write            the table of docs/inverse.md
    python -m benchmarks.restored_digits picture [RUN]    docs/images/restored.png

RUN is a run of digits, such as that of `make demo`; the newest unless given.

The lower half of 8 x 8 digits is missing, and the noise is 0.1.  All methods take quadratic DDPM steps, as many as the
budget of network equivalents (NE) allows, with x_0 clipped (except DiffPIR, which does not clip), and see the same
measurements of 32 test digits, with 20 samples each.  The missing pixels are scored; see `optcov.posterior.scores`.

Heads are trained side by side by Adam on the same noisy training digits for 600 steps of 64.  Recalibration takes the
test digits that are not scored; constants of DiffPIR and DPS are tuned on eight of those.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from benchmarks.correlations import fitted
from benchmarks.picture import newest_run
from benchmarks.reference_page import filled
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.inverse import Mask, Operator
from optcov.posterior import rivals
from optcov.posterior.rivals import Method, Step
from optcov.posterior.scores import against
from optcov.trajectory import QuadraticTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.recalibrated import Recalibrated

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "digits_restored.json", ROOT / "docs" / "inverse.md"
PICTURE = ROOT / "docs" / "images" / "restored.png"
NOISE, MEASUREMENTS, COUNT, FIT_STEPS, BUDGETS = 0.1, 32, 20, 600, (10, 30)
TUNED_ON = slice(MEASUREMENTS, MEASUREMENTS + 8)  # test digits
PICTURED = [1, 4, 10, 15]  # test digits
EXACT = "mmps_exact"  # takes ten steps whatever they cost
DIFFPIR = {f"{w:g} {z:g}": rivals.diffpir(w, z) for w in (1.0, 8.0) for z in (0.3, 1.0)}
DPS = {f"{size:g}": rivals.dps(size) for size in (0.3, 1.0, 3.0)}
RIVALS: dict[str, tuple[Method | dict[str, Method], int]] = {  # method, network equivalents a step
    "pi_gdm": (rivals.pi_gdm, 3),
    "ddnm": (rivals.ddnm, 1),
    "diffpir": (DIFFPIR, 1),
    "dps": (DPS, 3),
    EXACT: (rivals.mmps(None), 67),  # conjugate gradients break down on a learned Jacobian, which is not symmetric
}
OURS = ("npr_dpm", "low_rank", "low_rank_both", "low_rank_jacobian", "data_cov")
NAMES = {
    "npr_dpm": "`npr_dpm`",
    "low_rank": "`low_rank`",
    "low_rank_both": "`low_rank`, likelihood and products",
    "low_rank_jacobian": "`low_rank`, products alone",
    "data_cov": "`data_cov`",
    "pi_gdm": "Pi-GDM",
    "ddnm": "DDNM+",
    "diffpir": "DiffPIR, tuned",
    "dps": "DPS, tuned",
    EXACT: "MMPS, solved exactly, ten steps (670 NE)",
}


def theirs(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    method: Method,
    count: int,
    steps: int = 10,
    seed: int = 0,
    noise: float = NOISE,
) -> Tensor:
    """Draw samples ``[n, count, *event]`` with a rival, whose products are backward passes.

    Args:
        denoiser: its data lie between a number and its negative.
        operator: A, with ``A A^T`` a multiple of the identity.
        y: measurements, ``[n, *measurement]``.
        method: the rival.
        count, steps, seed: number of samples for each measurement, of steps, and the seed.
        noise: standard deviation of the noise in y.
    """
    high = denoiser.data_range.high
    assert isinstance(high, float)
    times = QuadraticTrajectory().times(denoiser.schedule, steps)
    levels, data = denoiser.levels(times).flip(), denoiser.levels(times.new_zeros(()))
    generator, rows = torch.Generator().manual_seed(seed), y.flatten(1).repeat_interleave(count, 0)
    x = torch.randn(len(rows), *denoiser.data_shape, generator=generator)
    matrix, shape = operator.matrix(x), x.shape
    gram = float(matrix[0].square().sum())
    for i in range(len(times)):
        last = i == len(times) - 1
        t, s = levels[i], data if last else levels[i + 1]
        with torch.no_grad():
            prediction = denoiser(x, t)

        def product(v: Tensor, prediction: object = prediction, t: object = t) -> Tensor:
            image: Tensor = denoiser.vjp(prediction, v.reshape(shape))  # type: ignore[arg-type]
            return float(t.sigma**2 / t.alpha) * image.flatten(1)  # type: ignore[attr-defined]

        step = Step(
            x.flatten(1), prediction.x0.flatten(1), product, t, s, last, matrix, gram, rows, noise, generator, high
        )
        x = method(step).reshape(shape).float()
    return x.reshape(len(y), count, *denoiser.data_shape)


def operator_of(denoiser: Denoiser) -> Mask:
    """The lower half of digits is missing."""
    return Mask(denoiser.data_shape, torch.arange(64).reshape(8, 8) < 32)


def measured(operator: Operator, truth: Tensor) -> Tensor:
    """Measurements of images, ``[n, *measurement]``."""
    y: Tensor = operator(truth)
    return y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))


def scores(truth: Tensor, samples: Tensor, operator: Mask) -> dict[str, Any]:
    """RMSE of the mean; coverage in % and CRPS, each with its standard error; of the missing pixels."""
    hidden = operator.adjoint(torch.ones(1, *operator.measurement_shape))[0].flatten() == 0
    truth, samples = truth.flatten(1)[:, hidden], samples.flatten(2)[..., hidden]
    found = against(truth, samples)
    means = {key: [float(found[key].mean()), float(found[key].std() / len(truth) ** 0.5)] for key in ("c90", "crps")}
    return {"rmse": float(((samples.mean(1) - truth) ** 2).mean().sqrt()), **means}


def cells() -> list[tuple[str, int, int]]:
    """Method, budget and number of steps; methods of ours again with a recalibration."""
    ours = [f"{name}{end}" for name in OURS for end in ("", " recalibrated")]
    costs = dict.fromkeys(ours, 1) | {name: cost for name, (_, cost) in RIVALS.items() if name != EXACT}
    found = [(name, budget, budget // cost) for name, cost in costs.items() for budget in BUDGETS]
    return [*found, (EXACT, 670, 10)]


class Measurement:
    """The cells of a network.

    Args:
        denoiser: a denoiser of digits.
        fit_steps: gradient steps of heads.
    """

    def __init__(self, denoiser: Denoiser, fit_steps: int = FIT_STEPS) -> None:
        data = DigitsData()
        self.denoiser, self.fit_steps = denoiser, fit_steps
        self.images = data.normalize(data.load("test"))
        self.operator = operator_of(denoiser)
        self.strategies: dict[str, VarianceStrategy] = {}

    def strategy(self, name: str) -> VarianceStrategy:
        """A strategy by its name in `cells`."""
        if not self.strategies:
            self.strategies = fitted(list(OURS), self.denoiser, self.fit_steps)
        option = name.removesuffix(" recalibrated")
        if name == option:
            return self.strategies[option]
        own = Recalibrated(self.denoiser, self.strategies[option])
        return optcov.fit(own, self.denoiser, self.images[MEASUREMENTS:], progress=False)

    def cell(self, name: str, steps: int) -> dict[str, Any]:
        """Measure a method."""
        truth, cell = self.images[:MEASUREMENTS], dict[str, Any](steps=steps)
        y, cost, total = measured(self.operator, truth), self.denoiser.cost, MEASUREMENTS * COUNT
        if name in RIVALS:
            method = RIVALS[name][0]
            if isinstance(method, dict):
                cell["choice"] = self._tuned(method, steps)
                method = method[cell["choice"]]
            cost.reset()
            began = time.process_time()
            samples = theirs(self.denoiser, self.operator, y, method, COUNT, steps)
            calls = cost.ne - cost.nfe + steps * total
        else:
            strategy = self.strategy(name)
            cost.reset()
            began = time.process_time()
            samples = optcov.restore(
                self.denoiser, strategy, y, self.operator, NOISE, COUNT, steps, batch_size=1024, progress=False
            ).samples
            calls = cost.ne
        cell |= {"ne": calls / total, "cpu_ms": 1000 * (time.process_time() - began) / total}
        return cell | scores(truth, samples, self.operator)

    def _tuned(self, choices: dict[str, Method], steps: int) -> str:
        truth = self.images[TUNED_ON]
        y = measured(self.operator, truth)
        found = {}
        for name, method in choices.items():
            samples = theirs(self.denoiser, self.operator, y, method, COUNT, steps, 1)
            found[name] = scores(truth, samples, self.operator)["crps"][0]
        return min(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))


def measure(denoiser: Denoiser) -> None:
    """Measure the cells that are missing."""
    measurement = Measurement(denoiser)
    for name, budget, steps in cells():
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if (key := f"{budget} {name}") not in known:
            cell = measurement.cell(name, steps)
            write_atomically(RESULTS, json.dumps(known | {key: cell}, indent=1) + "\n")
            print(key, cell, flush=True)


def table(known: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = ["| | " + " | ".join(f"NE {b}: RMSE | 90 % | CRPS | ms" for b in BUDGETS) + " |"]
    lines.append("|:--" * (1 + 4 * len(BUDGETS)) + "|")
    for name in dict.fromkeys(name for name, _, _ in cells()):
        option = name.removesuffix(" recalibrated")
        columns = [", recalibrated".join([NAMES[option]] + [""] * (name != option))]
        for budget in BUDGETS:
            cell = known.get(f"{budget} {name}")
            if (name, budget) == (EXACT, BUDGETS[-1]):
                cell = known.get(f"670 {EXACT}")
            columns += [""] * 4 if cell is None else _columns(cell)
        if any(columns[1:]):
            lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _columns(cell: dict[str, Any]) -> list[str]:
    value, error = cell["crps"]
    return [f"{cell['rmse']:.2f}", f"{cell['c90'][0]:.0f}", f"{value:.3f} ± {error:.3f}", f"{cell['cpu_ms']:.0f}"]


def draw(denoiser: Denoiser) -> None:
    """Draw truth, measurement, mean, standard deviation and four samples, by ``data_cov`` in ten steps."""
    strategy = fitted(["data_cov"], denoiser, 1)["data_cov"]
    data = DigitsData()
    images = data.normalize(data.load("test")[PICTURED])
    operator = operator_of(denoiser)
    y = measured(operator, images)
    optcov.restore(denoiser, strategy, y, operator, NOISE, 12, 10, progress=False).picture(PICTURE, truth=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "write", "picture"])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or a mean.safetensors")
    args = parser.parse_args()
    if args.command == "write":
        PAGE.write_text(filled(PAGE.read_text(), {"restored digits": table(json.loads(RESULTS.read_text()))}))
        return
    denoiser = optcov.load(args.run or newest_run(Path("outputs/train"))).eval()
    (measure if args.command == "measure" else draw)(denoiser)


if __name__ == "__main__":
    main()
