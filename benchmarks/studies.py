"""Studies of open questions on digits: what a structured C costs, what conditioning is worth, what moves the order.

    python train.py -m seed=0,1,2 model=unet var=beta schedule=linear trainer.max_steps=1150

trains three networks; then, with their folders,

    python -m benchmarks.studies STUDY RUN RUN RUN      the cells of docs/studies/STUDY.md: lgs, conditional or order
    python -m benchmarks.studies                        writes the tables of all pages again

A cell is a variant on one network: numbers by column.  Cells are kept one by one in ``benchmarks/results/studies.json``
and found there again.  A table has the means of its columns, and their standard deviations over networks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import optcov
from benchmarks.digit_scores import Reference
from benchmarks.reference_page import ROOT, filled, table
from benchmarks.sn_and_npr import spread
from optcov.covariance import Covariance, DiagonalCovariance
from optcov.covbench.truths import DIM, digits_mixture
from optcov.data import DigitsData
from optcov.denoiser import Denoiser, Prediction
from optcov.files import write_atomically
from optcov.metric import VariationalDensity
from optcov.model.blocks import ResidualBlock
from optcov.parameterization import X0, Eps, Parameterization, V
from optcov.posterior import tasks
from optcov.posterior.methods import Truncated
from optcov.registry import make
from optcov.sampler import NoiseStream
from optcov.variance.base import Closed, CovarianceModel, VarianceStrategy
from optcov.variance.lgs import LGS
from optcov.variance.recalibrated import Recalibrated

RESULTS, PAGES = ROOT / "benchmarks" / "results" / "studies.json", ROOT / "docs" / "studies"
ORDER = ("beta_tilde", "analytic", "npr_dpm", "sn_dpm")  # the published one, from worst to best
TIMES = (0.1, 0.25, 0.5, 0.75)
Cell = dict[str, float]
Variants = Iterator[tuple[str, Callable[[], Cell]]]


@dataclass
class Setting:
    """A network of digits, and what strategies are fitted to and scored against."""

    denoiser: Denoiser
    images: Tensor
    held_out: Tensor
    reference: Reference
    count: int = 300  # samples

    def fit(self, name: str, steps: int | None = None, denoiser: Denoiser | None = None, **settings: Any) -> Any:
        """A strategy, fitted; heads are the default ones, trained as ``train.py`` does, but by `optcov.fit`."""
        trained: dict[str, Any] = {} if steps is None else {"batch_size": 64, "lr": 0.01, "head": "simple"}
        return optcov.fit(name, denoiser or self.denoiser, self.images, steps, progress=False, **(trained | settings))

    def samples(self, strategy: VarianceStrategy, label: str, steps: int, sampler: str, **settings: Any) -> Cell:
        """The distances of samples, and their network equivalents."""
        denoiser = settings.pop("denoiser", self.denoiser)
        denoiser.cost.reset()
        drawn = optcov.sample(denoiser, strategy, steps, self.count, sampler, progress=False, **settings)
        scores = self.reference.scores(drawn)
        found = {f"pixels: {label}": scores["fd_pixel"], f"features: {label}": scores["features"]}
        return found | {f"ne: {label}": denoiser.cost.ne / self.count}

    def bits(self, strategy: VarianceStrategy, count: int, label: str = "bits/dim") -> Cell:
        """The bound on held-out images at ten steps; infinite where a pixel has no variance."""
        self.denoiser.cost.reset()
        try:
            images = self.held_out[:count]
            value = optcov.bits_per_dim(self.denoiser, strategy, images, 10, progress=False).value
        except ValueError as error:
            if "must be finite" not in str(error):
                raise
            value = math.inf
        return {label: value, f"ne: {label}": self.denoiser.cost.ne / count}


def lgs(setting: Setting) -> Variants:
    """Samples at 10 and 20 network equivalents, and the bound, whose log det and traces `lgs` has from quadrature."""

    def drawn(strategy: VarianceStrategy, products: int, bits: int = 16) -> Cell:
        found: Cell = {}
        for budget in (10, 20):
            steps = 1 + (budget - 1 - bool(products)) // (1 + products)  # one product for the last cut
            found[f"steps: {budget}"] = float(steps)
            found |= setting.samples(strategy, f"{budget}", steps, "ddim", trajectory="quadratic")
        return found | (setting.bits(strategy, bits) if bits else {})

    def products(steps: int) -> LGS:
        return LGS(setting.denoiser, steps, difference=0.01)

    def scaled(strategy: VarianceStrategy) -> VarianceStrategy:
        recalibrated = Recalibrated(setting.denoiser, strategy, 10, 64)
        return optcov.fit(recalibrated, setting.denoiser, setting.images, progress=False)

    yield "none", lambda: drawn(setting.fit("beta_tilde"), 0, 0)
    yield "`npr_dpm`", lambda: drawn(setting.fit("npr_dpm", 300, lr=0.03), 0)
    yield "`low_rank`, r = 16", lambda: drawn(setting.fit("low_rank", 300), 0)
    yield "`lgs`, k = 1", lambda: drawn(products(1), 1)
    yield "`lgs`, k = 3", lambda: drawn(products(3), 3)
    yield "`lgs`, k = 3, recalibrated", lambda: drawn(scaled(products(3)), 4)
    yield "`lgs`, k = 8", lambda: drawn(products(8), 8)


def exact(number: int) -> Variants:
    """The same for the exact mean of a mixture of ten Gaussians of digits, and parts of its exact C; nats/dim."""
    mixture = digits_mixture()
    denoiser = tasks.exact(tasks.ExactNetwork(mixture, DIM))
    truth = mixture.sample(16, torch.Generator().manual_seed(number))
    reference = Reference(mixture.sample(4000, torch.Generator().manual_seed(7)), mixture.mean(), mixture.covariance())
    quadratic = make("trajectory", "quadratic")

    def drawn(strategy: VarianceStrategy, products: int, bound: bool = True) -> Cell:
        found: Cell = {}
        for budget in (10, 20):
            steps = 1 + (budget - 1 - bool(products)) // (1 + products)
            times = quadratic.times(denoiser.schedule, steps)
            noise = NoiseStream(number, range(300), denoiser.data_shape, dtype=torch.float64)
            sampler = make("sampler", "ddim", num_steps=len(times), clip_x0=False, cut=None)
            denoiser.cost.reset()
            scores = reference.scores(sampler.sample(denoiser, strategy, times, noise))
            found |= {f"steps: {budget}": float(steps), f"ne: {budget}": denoiser.cost.ne / 300}
            found |= {f"pixels: {budget}": scores["fd_pixel"], f"features: {budget}": scores["features"]}
        if bound:
            bits = VariationalDensity(clip_x0=False).measure(
                denoiser, strategy, make("trajectory", "even").times(denoiser.schedule, 10), truth, 0, 16, None, False
            )
            found["nats/dim"] = bits.value
        return found

    yield "none", lambda: drawn(optcov.fit("beta_tilde", denoiser), 0, False)
    yield "exact diagonal", lambda: drawn(Truncated(denoiser, mixture, 0), 0)
    yield "exact, as if it cost nothing", lambda: drawn(Truncated(denoiser, mixture, None), 0)
    yield "`lgs`, k = 1", lambda: drawn(LGS(denoiser, 1, difference=0.01), 1)
    yield "`lgs`, k = 3", lambda: drawn(LGS(denoiser, 3, difference=0.01), 3)
    yield "`lgs`, k = 8", lambda: drawn(LGS(denoiser, 8, difference=0.01), 8)


class Averaged(Closed):
    """What a fitted diagonal is on average over images, at each time: the same estimator, but not conditional."""

    def __init__(self, denoiser: Denoiser, strategy: VarianceStrategy, images: Tensor) -> None:
        super().__init__(denoiser)
        assert isinstance(strategy, CovarianceModel)
        self.strategy, self.images, self.known = strategy, images, dict[float, Tensor]()

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        t = float(prediction.level.t.reshape(-1)[0])
        if t not in self.known:
            ne, nfe = denoiser.cost.ne, denoiser.cost.nfe
            eps = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))
            level = denoiser.levels(torch.tensor(t, dtype=torch.float64))
            seen = denoiser(denoiser.diffuse(self.images, eps, level), level)
            assert isinstance(self.strategy, CovarianceModel)
            self.known[t] = self.strategy.bounded_covariance(denoiser, seen).diagonal().mean(0, keepdim=True)
            denoiser.cost.ne, denoiser.cost.nfe = ne, nfe
        return DiagonalCovariance(self.known[t].expand(prediction.x_t.shape))


@torch.no_grad()
def likelihood(setting: Setting, strategy: VarianceStrategy) -> Cell:
    """NLL of held-out images given their noisy versions, in nats per dimension, as a mean over four times; and how
    often intervals of 90 % hold a pixel."""
    assert isinstance(strategy, CovarianceModel)
    total, inside = 0.0, 0.0
    for t in TIMES:
        eps = torch.randn(setting.held_out.shape, generator=torch.Generator().manual_seed(1))
        level = setting.denoiser.levels(torch.tensor(t, dtype=torch.float64))
        prediction = setting.denoiser(setting.denoiser.diffuse(setting.held_out, eps, level), level)
        model = strategy.bounded_covariance(setting.denoiser, prediction)
        error = setting.held_out - prediction.x0
        nats = (model.inv_quad(error).double() + model.logdet().double()).mean() / 2 / error[0].numel()
        total += float(nats) / len(TIMES) if nats.isfinite() else math.inf  # a pixel without variance
        inside += float((error.abs() <= 1.6448536 * model.diagonal().clamp(min=0).sqrt()).double().mean()) / len(TIMES)
    return {"nats/dim given x_t": total, "90 %": 100 * inside}


def conditional(setting: Setting) -> Variants:
    """C that is the same for all x_t, and C that depends on it: one number, one a pixel, and structured."""

    def scored(strategy: VarianceStrategy) -> Cell:
        found = likelihood(setting, strategy) | setting.bits(strategy, 100)
        for sampler, steps in (("ddim", 5), ("ddim", 10)):
            found |= setting.samples(strategy, f"{sampler} {steps}", steps, sampler)
        return found

    @cache
    def head() -> VarianceStrategy:
        found: VarianceStrategy = setting.fit("nll", 300)
        return found

    yield "`analytic_imperfect`: one number", lambda: scored(setting.fit("analytic_imperfect", num_times=50))
    yield "`analytic_diag`", lambda: scored(setting.fit("analytic_diag", num_times=50))
    yield "`analytic_imperfect_diag`", lambda: scored(setting.fit("analytic_imperfect_diag", num_times=50))
    yield "`nll`, averaged over x_t", lambda: scored(Averaged(setting.denoiser, head(), setting.images[:200]))
    yield "`dct`", lambda: scored(setting.fit("dct", num_times=50))
    yield "`data_cov`", lambda: scored(setting.fit("data_cov"))
    yield "`npr_dpm`, conditional", lambda: scored(setting.fit("npr_dpm", 300, lr=0.03))
    yield "`nll`, conditional", lambda: scored(head())
    yield "`dct_head`, conditional", lambda: scored(setting.fit("dct_head", 300))
    yield "`low_rank`, conditional", lambda: scored(setting.fit("low_rank", 300))


class Converted(nn.Module):
    """A network that predicts the noise, as one that predicts another target; nothing else is different."""

    def __init__(self, denoiser: Denoiser, parameterization: Parameterization) -> None:
        super().__init__()
        self.network, self.schedule, self.parameterization = denoiser.network, denoiser.schedule, parameterization
        self.data_shape, self.feature_channels = denoiser.data_shape, denoiser.feature_channels

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, features = self.network(x_t, time)
        level = self.schedule.levels(time.double() / 1000)
        x0 = Eps().x0(x_t.double(), output.double(), level)
        return self.parameterization.target(x0, output.double(), level).to(x_t.dtype), features


class Dropping(nn.Module):
    """Dropout that eval mode does not end."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1)


@contextmanager
def dropping(network: nn.Module) -> Iterator[None]:
    """A network with dropout, at the published rate of 0.1, in every residual block."""
    blocks = [each for each in network.modules() if isinstance(each, ResidualBlock)]
    before = [block.dropout for block in blocks]
    for block in blocks:
        block.dropout = Dropping()  # type: ignore[assignment]
    try:
        yield
    finally:
        for block, module in zip(blocks, before, strict=True):
            block.dropout = module


def order(setting: Setting) -> Variants:
    """beta_tilde, analytic, NPR and SN at ten steps, with one thing changed at a time."""
    kept: dict[str, VarianceStrategy] = {}
    known: dict[str, Cell] = {}
    denoiser = setting.denoiser

    def fitted(name: str, target: Parameterization | None = None, dropout: bool = False) -> VarianceStrategy:
        key = f"{name} {target} {dropout}"
        if key not in kept:
            own = denoiser if target is None else Denoiser(Converted(denoiser, target), denoiser.schedule, target)
            settings: dict[str, Any] = {"analytic": {"num_times": 50}, "beta_tilde": {}}.get(name, {"lr": 0.03})
            with dropping(denoiser.network) if dropout else nullcontext():
                steps = 300 if name.endswith("dpm") else None
                kept[key] = setting.fit(name, steps, own.eval(), **settings)
        return kept[key]

    def scored(target: Parameterization | None = None, dropout: bool = False, **settings: Any) -> Cell:
        own = denoiser if target is None else Denoiser(Converted(denoiser, target), denoiser.schedule, target).eval()
        found: Cell = {}
        for name in ORDER:
            if name.endswith("dpm"):
                strategy = fitted(name, target, dropout)
                found |= setting.samples(strategy, name, 10, "ddpm", denoiser=own, **settings)
                continue
            key = f"{name} {settings}"  # without a head, samples are the same for all settings of heads
            if key not in known:
                known[key] = setting.samples(fitted(name), name, 10, "ddpm", **settings)
            found |= known[key]
        return found

    yield "as published", scored
    yield "no cut of the last noise", lambda: scored(cut=None)
    yield "x_0 not clipped", lambda: scored(clip_x0=False)
    yield "neither", lambda: scored(cut=None, clip_x0=False)
    yield "heads fitted with dropout 0.1", lambda: scored(dropout=True)
    yield "heads in the unit of v", lambda: scored(V())
    yield "heads in the unit of x_0", lambda: scored(X0())


STUDIES: dict[str, Callable[[Setting], Variants]] = {"lgs": lgs, "conditional": conditional, "order": order}


def kept(content: dict[str, Any], key: str, make_cell: Callable[[], Cell], path: Path) -> None:
    """Measure a cell if it is not known, and write it."""
    if key in content["cells"]:
        return
    began = time.process_time()
    torch.manual_seed(0)
    cell = make_cell()
    content["cells"][key] = {name: float(f"{value:.5g}") for name, value in cell.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    print(f"{key} ({time.process_time() - began:.0f} s)", content["cells"][key], flush=True)


def measure(study: str, runs: list[Path], path: Path) -> None:
    """Measure the missing cells of a study on the networks of these runs."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    data = DigitsData()
    images, held_out = data.calibration(1500), data.normalize(data.load("test"))
    reference = Reference(data.normalize(data.load("train")))
    for number, run in enumerate(runs):
        setting = Setting(optcov.load(run), images, held_out, reference)
        for name, make_cell in STUDIES[study](setting):
            kept(content, f"{study}: {name} @ {number}", make_cell, path)
        for name, make_cell in exact(number) if study == "lgs" else ():
            kept(content, f"exact: {name} @ {number}", make_cell, path)


def grid(content: dict[str, Any], study: str, columns: dict[str, str], head: str = "C") -> str:
    """A table of a study: a row a variant, and a column for each of these names of cells."""
    cells = {key.removeprefix(f"{study}: "): cell for key, cell in content["cells"].items() if key.startswith(study)}
    rows = []
    for name in dict.fromkeys(key.rpartition(" @ ")[0] for key in cells):
        own = [cell for key, cell in cells.items() if key.rpartition(" @ ")[0] == name]
        rows.append([name, *(spread([each[column] for each in own]) if column in own[0] else "" for column in columns)])
    return table([head, *columns.values()], rows)


def tables(content: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The tables of each page, by name."""
    few = {f"{score}: {budget}": f"{score}, NE {budget}" for score in ("pixels", "features") for budget in (10, 20)}
    chains = ("ddim 5", "ddim 10")
    calibration = {"nats/dim given x_t": "nats/dim given x_t", "90 %": "90 % holds", "bits/dim": "bits/dim"}
    samples = {f"{score}: {chain}": f"{score}, {chain}" for score in ("pixels", "features") for chain in chains}
    steps = {"steps: 10": "steps at NE 10"}
    return {
        "lgs": {
            "learned": grid(content, "lgs", steps | few | {"bits/dim": "bits/dim", "ne: bits/dim": "NE of that"}),
            "exact": grid(content, "exact", steps | few | {"nats/dim": "nats/dim"}),
        },
        "conditional": {"scores": grid(content, "conditional", calibration | samples)},
        "order": {
            score: grid(content, "order", {f"{score}: {name}": f"`{name}`" for name in ORDER}, "setting")
            for score in ("pixels", "features")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=list(STUDIES))
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of digits, one for each seed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.study:
        measure(arguments.study, arguments.runs, arguments.results)
    for name, made in tables(json.loads(arguments.results.read_text())).items():
        page = PAGES / f"{name}.md"
        page.write_text(filled(page.read_text(), made))
        print(page)


if __name__ == "__main__":
    main()
