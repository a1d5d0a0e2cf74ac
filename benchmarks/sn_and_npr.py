"""Why SN-DPM scores better in samples than in likelihood: its variance taken apart, on digits.

    python train.py -m seed=0,1,2 model=unet var=sn_dpm,npr_dpm schedule=linear trainer.max_steps=1150

trains three networks; then, with their folders,

    python -m benchmarks.sn_and_npr RUN RUN RUN                          the cells of docs/studies/sn_and_npr.md
    python -m benchmarks.sn_and_npr                                      writes the tables there again

SN-DPM's ``h - e^2`` is below 0 for many pixels, and becomes 0 there.  If that bound acts as a gate, between the noise
of DDPM and that of DDIM, then NPR-DPM's variance with SN-DPM's zeros should score as SN-DPM does.  All variants of a
seed share one frozen network and one pair of heads, but for those that say otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from benchmarks.digit_scores import Reference
from benchmarks.reference_page import ROOT, filled, table
from optcov.covariance import Covariance, DiagonalCovariance
from optcov.data import DigitsData
from optcov.denoiser import Denoiser, Prediction
from optcov.files import write_atomically
from optcov.kernel import ReverseKernel
from optcov.variance.base import Closed, CovarianceModel, VarianceStrategy

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "sn_and_npr.json", ROOT / "docs" / "studies" / "sn_and_npr.md"
SAMPLES, STEPS, TIMES = 2000, (5, 10), (0.1, 0.25, 0.5, 0.75, 0.9)


class Combined(Closed):
    """The diagonal that a rule makes of NPR-DPM's and SN-DPM's, the latter before bounds."""

    def __init__(
        self,
        denoiser: Denoiser,
        npr: CovarianceModel,
        sn: CovarianceModel,
        rule: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(denoiser)
        self.npr, self.sn, self.rule = npr, sn, rule

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        npr, sn = (each.covariance(denoiser, prediction).diagonal() for each in (self.npr, self.sn))
        return DiagonalCovariance(self.rule(npr, sn))


class Unbounded(Combined):
    """The same, of which only the sum with the step's own noise is bounded: at 0."""

    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return DiagonalCovariance(kernel.covariance(self.covariance(denoiser, prediction)).diagonal().clamp(min=0))


def gated(npr: Tensor, sn: Tensor) -> Tensor:
    return npr * (sn > 0)


def joined(npr: Tensor, sn: Tensor) -> Tensor:
    return torch.where(sn > 0, sn, npr)


def shuffled(npr: Tensor, sn: Tensor) -> Tensor:
    """NPR's, 0 for as many pixels as in SN's, but for those of another image."""
    return npr * (sn.roll(1, 0) > 0)


def variants(denoiser: Denoiser, images: Tensor) -> dict[str, Callable[[], VarianceStrategy]]:
    """By name; heads are fitted as ``train.py`` fits them, but by `optcov.fit`."""
    kept: dict[str, VarianceStrategy] = {}

    def fitted(name: str, steps: int = 300, head: str = "simple") -> VarianceStrategy:
        key = f"{name} {steps} {head}"
        if key not in kept:
            kept[key] = optcov.fit(name, denoiser, images, steps, batch_size=128, lr=0.03, head=head, progress=False)
        return kept[key]

    def combined(rule: Callable[[Tensor, Tensor], Tensor], kind: type[Combined] = Combined) -> VarianceStrategy:
        npr, sn = fitted("npr_dpm"), fitted("sn_dpm")
        assert isinstance(npr, CovarianceModel)
        assert isinstance(sn, CovarianceModel)
        return kind(denoiser, npr, sn, rule)

    return {
        "beta_tilde": lambda: optcov.fit("beta_tilde", denoiser),
        "NPR": lambda: fitted("npr_dpm"),
        "SN": lambda: fitted("sn_dpm"),
        "NPR, 0 where SN is": lambda: combined(gated),
        "NPR, 0 as often, for pixels of another image": lambda: combined(shuffled),
        "SN, NPR where it is 0": lambda: combined(joined),
        "SN, bounded only in the step": lambda: combined(lambda npr, sn: sn, Unbounded),
        "SN, ten times as long": lambda: fitted("sn_dpm", 3000),
        "SN, residual block": lambda: fitted("sn_dpm", 1500, "complex"),
        "NPR, residual block": lambda: fitted("npr_dpm", 1500, "complex"),
        "OCM": lambda: fitted("ocm"),
        "NLL": lambda: fitted("nll"),
    }


@torch.no_grad()
def anatomy(denoiser: Denoiser, strategy: VarianceStrategy, images: Tensor) -> list[dict[str, float]]:
    """Of held-out images at each of `TIMES`: the share of pixels at or below 0, and mean variance over squared error,
    among those pixels and among the others."""
    assert isinstance(strategy, CovarianceModel)
    rows = []
    for t in TIMES:
        eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        level = denoiser.levels(torch.tensor(t, dtype=torch.float64))
        prediction = denoiser(denoiser.diffuse(images, eps, level), level)
        raw = strategy.covariance(denoiser, prediction).diagonal()
        used = strategy.bounded_covariance(denoiser, prediction).diagonal()
        error, low = (images - prediction.x0) ** 2, raw <= 0
        rows.append(
            {
                "t": t,
                "zero": float(low.float().mean()),
                "error_zero": float(error[low].mean()) if low.any() else 0.0,
                "error_other": float(error[~low].mean()),
                "variance_other": float(used[~low].mean()),
            }
        )
    return rows


def measure(runs: list[Path], path: Path) -> None:
    """Measure the missing cells of the networks of these runs."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    data = DigitsData()
    images, held_out = data.calibration(1500), data.normalize(data.load("test"))
    reference = Reference(images)
    for number, run in enumerate(runs):
        denoiser = optcov.load(run)
        for name, make in variants(denoiser, images).items():
            key = f"{name} @ {number}"
            if key in content["cells"]:
                continue
            strategy, cell = make(), dict[str, Any]()
            for sampler in ("ddpm", "ddim"):
                for steps in STEPS:
                    drawn = optcov.sample(denoiser, strategy, steps, SAMPLES, sampler, progress=False)
                    cell[f"{sampler} {steps}"] = reference.scores(drawn)
            try:
                bits = optcov.bits_per_dim(denoiser, strategy, held_out, 10, progress=False)
                cell["bits"] = {"value": bits.value, "standard_error": bits.standard_error}
            except ValueError as error:
                if "must be finite" not in str(error):  # a pixel of variance 0 in a step without noise of its own
                    raise
                cell["bits"] = {"value": math.inf, "standard_error": math.nan}
            if name in ("NPR", "SN", "SN, residual block", "OCM", "NLL"):
                cell["anatomy"] = anatomy(denoiser, strategy, held_out)
            content["cells"][key] = cell
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, indent=1) + "\n")
            print(key, {k: round(v["fd_pixel"], 3) for k, v in cell.items() if " " in k}, cell["bits"], flush=True)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over networks."""
    if math.inf in values:
        return "infinite"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"


def tables(content: dict[str, Any]) -> dict[str, str]:
    """The tables of the document by name: scores, a row a variant; and the anatomy of heads, a row a time."""
    cells: dict[str, dict[str, Any]] = content["cells"]
    names = list(dict.fromkeys(key.rpartition(" @ ")[0] for key in cells))
    columns = [f"{sampler} {steps}" for sampler in ("ddpm", "ddim") for steps in STEPS]
    rows = []
    for name in names:
        own = [cell for key, cell in cells.items() if key.rpartition(" @ ")[0] == name]
        row = [spread([cell[each][score] for cell in own]) for score in ("fd_pixel", "features") for each in columns]
        rows.append([name, *row, spread([cell["bits"]["value"] for cell in own])])
    head = ["C", *(f"{score}: {each}" for score in ("pixels", "features") for each in columns), "bits/dim"]
    made = {"scores": table(head, rows)}
    rows = []
    for name in names:
        own = [cell["anatomy"] for key, cell in cells.items() if key.rpartition(" @ ")[0] == name and "anatomy" in cell]
        for at in zip(*own, strict=True):
            shares, *values = (
                statistics.mean(row[column] for row in at)
                for column in ("zero", "error_zero", "error_other", "variance_other")
            )
            rows.append([name, f"{at[0]['t']}", f"{100 * shares:.0f} %", *(f"{value:.3g}" for value in values)])
    head = ["C", "t", "at or below 0", "squared error there", "elsewhere", "variance elsewhere"]
    return made | {"anatomy": table(head, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of digits, one for each seed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    measure(arguments.runs, arguments.results)
    PAGE.write_text(filled(PAGE.read_text(), tables(json.loads(arguments.results.read_text()))))
    print(PAGE)


if __name__ == "__main__":
    main()
