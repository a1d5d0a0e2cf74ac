r"""The budget war: solvers and covariances at equal network equivalents (NE), on digits.

    python -m benchmarks.budget oracle          the exact mean of a mixture of ten Gaussians
    python -m benchmarks.budget RUN             a learned network: the folder of a run; hours of one core, in any parts
    python -m benchmarks.budget RUN --minutes 9 the same, for at most about so long
    python -m benchmarks.budget                 writes the tables and plots of docs/budget.md again, measuring nothing

Every solver takes the best of the times, and of clipping x_0 or not, by its features distance on a seed that is scored
for none; a method with noise takes the better of the two that are best for its solver alone.  Then each is scored on
other seeds.  Cells are written to ``benchmarks/results/budget_*.json`` one by one, and found there again: a killed run
goes on where it was, and another number of seeds adds to them.

    fd_pixel    Frechet distance of pixels, to the mixture itself or to the training images
    features    that of the 32 features of a small classifier of digits, trained here
    energy      energy distance, to 1500 images
    precision, recall   of the same features, to the third neighbour
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from benchmarks import budget_page
from benchmarks.digit_scores import Reference
from optcov.covbench.truths import DIM, digits_mixture
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.posterior.methods import Truncated
from optcov.posterior.tasks import ExactNetwork, exact
from optcov.registry import make
from optcov.sampler import NoiseStream, Sampler
from optcov.variance.base import Clean, VarianceStrategy

RESULTS = Path(__file__).parent / "results"
TRAJECTORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "quadratic": ("quadratic", {}),
    "even": ("even", {}),
    "log_snr": ("log_snr", {}),
    "power_3": ("power", {"power": 3.0}),
    "learned": ("learned", {}),
}
BUDGETS = {5: 5, 4: 5, 6: 5, 10: 3, 8: 3, 15: 3, 25: 3}  # network equivalents, in the order measured, and seeds of each
TUNING_SEED = 1000
CHAINS = 256  # on which shares of noise are measured
CLIPPED = ", clipped"


@dataclass(frozen=True)
class Method:
    """A sampler with a strategy.

    Args:
        name: of the method.
        sampler: the name of an option.
        var: the name of a strategy.
        settings: of the sampler.
        solver: the method without this noise, whose times and clipping are tried; None to try all.
        calls: network equivalents of a step that is not the last.
        last: those of the last step, and of what happens once.
    """

    name: str
    sampler: str
    var: str = "beta_tilde"
    settings: dict[str, Any] = field(default_factory=dict)
    solver: str | None = None
    calls: int = 1
    last: int = 1

    def steps(self, budget: int) -> int:
        """The most steps within a budget."""
        return 1 + max(0, budget - self.last) // self.calls


SOLVERS = {
    "2M": ("dpm_solver_pp", {"order": 2}),
    "3M": ("dpm_solver_pp", {"order": 3}),
    "UniPC": ("unipc", {"order": 2}),
    "iPNDM": ("ipndm", {"order": 3}),
    "DEIS": ("deis", {"order": 3}),
}


def methods(covariances: list[str], products: dict[str, int]) -> dict[str, Method]:
    """Everything that can be compared, by name, solvers first.

    Args:
        covariances: names of strategies that cost nothing beside the call.
        products: those that do, with the network equivalents of their products in a step.
    """
    found = [Method("DDIM", "ddim"), Method("DDPM", "ddpm"), Method("Heun", "heun", calls=2)]
    found += [Method(name, sampler, settings=settings) for name, (sampler, settings) in SOLVERS.items()]
    for name, (sampler, settings) in SOLVERS.items():
        found.append(Method(f"{name} balanced", sampler, settings={**settings, "noise": "balanced"}, solver=name))
    for var in [*covariances, *products]:
        costs: dict[str, Any] = {"calls": 1 + products.get(var, 0), "last": 1 + (var in products)}  # for the last bound
        found += [Method(f"{name} + {var}", name.lower(), var, solver=name, **costs) for name in ("DDIM", "DDPM")]
        found += [
            Method(f"{name} {noise} + {var}", sampler, var, {**settings, "noise": noise}, name, **costs)
            for name, (sampler, settings) in SOLVERS.items()
            for noise in ("matched", "balanced", "shaped")
        ]
    return {each.name: each for each in found}


def ranked(tuning: dict[str, float]) -> list[tuple[str, bool]]:
    """Trajectories, and whether x_0 is clipped, the best first."""
    return [(key.removesuffix(CLIPPED), key.endswith(CLIPPED)) for key in sorted(tuning, key=tuning.__getitem__)]


@dataclass
class War:
    """A network, its strategies, and what samples are compared with."""

    name: str
    denoiser: Denoiser
    images: Tensor  # clean ones, to calibrate and match with
    reference: Reference
    make_strategy: Callable[[str], VarianceStrategy]
    methods: dict[str, Method]
    trajectories: tuple[str, ...] = tuple(TRAJECTORIES)
    clipping: tuple[bool, ...] = (False, True)
    cut: float | None = 1.0
    dtype: torch.dtype = torch.float32
    priority: Callable[[str, int], int] = lambda name, budget: 1
    made: dict[str, Any] = field(default_factory=dict)

    def chosen(self, calls: list[int]) -> list[tuple[int, str]]:
        """Budgets and methods to measure where none are named: those of priority 1, then of 2; none of 0."""
        every = [(budget, name) for budget in calls for name in self.methods]
        return [each for level in (1, 2) for each in every if self.priority(each[1], each[0]) == level]

    def strategy(self, name: str) -> VarianceStrategy:
        """Made and fitted once."""
        if name not in self.made:
            self.made[name] = self.make_strategy(name)
        found: VarianceStrategy = self.made[name]
        return found

    def times(self, name: str, steps: int) -> Tensor:
        """Of a trajectory, which is fitted once where that is asked for."""
        key = f"trajectory {name}"
        if key not in self.made:
            option, settings = TRAJECTORIES[name]
            self.made[key] = make("trajectory", option, **settings)
            if self.made[key].num_images:
                chains = Clean([self.images[: self.made[key].num_images].to(self.dtype)], TUNING_SEED)
                self.made[key].fit(self.denoiser, self.strategy("beta_tilde"), chains)
        found: Tensor = self.made[key].times(self.denoiser.schedule, steps)
        return found

    def sampler(self, method: Method, times: Tensor, clipped: bool) -> Sampler:
        """Fitted to the times, where that is asked for."""
        own = dict(method.settings)
        if "order" in own:
            own["order"] = min(len(times), own["order"])
        if method.sampler != "heun":
            own["clip_x0"] = clipped
        if method.var != "beta_tilde" or method.sampler in ("ddim", "ddpm"):
            own["cut"] = self.cut
        sampler: Sampler = make("sampler", method.sampler, num_steps=len(times), **own)
        if sampler.num_images:
            sampler.fit(self.denoiser, self.strategy(method.var), times, Clean([self.images[:CHAINS]], TUNING_SEED))
        return sampler

    def draw(self, sampler: Sampler, var: str, times: Tensor, count: int, seed: int) -> tuple[Tensor, float]:
        """Samples, and their network equivalents."""
        noise = NoiseStream(seed, range(count), self.denoiser.data_shape, dtype=self.dtype)
        self.denoiser.cost.reset()
        samples = sampler.sample(self.denoiser, self.strategy(var), times, noise)
        return samples, self.denoiser.cost.ne / count

    def candidates(self, method: Method, budget: int, cells: dict[str, Any]) -> list[tuple[str, bool]]:
        """Trajectories, and whether x_0 is clipped: of a method with noise, those of its solver.

        A solver tries all; but at 4 and 6 network equivalents only the three that were best at 5, if that is known, and
        from 8 on only clipping, if it is a multistep solver.
        """
        solver = cells.get(f"{method.solver} @ {budget}", {})
        if "tuning" in solver and method.calls == 1:
            return ranked(solver["tuning"])[: 2 if budget == 5 else 1]
        known = cells.get(f"{method.name} @ 5", {})
        if budget in (4, 6) and "tuning" in known:
            return ranked(known["tuning"])[:3]
        clipping = self.clipping[:1] if method.sampler == "heun" else self.clipping
        if budget >= 8 and "order" in method.settings:
            clipping = self.clipping[-1:]
        return [(name, clipped) for name in self.trajectories for clipped in clipping]

    def cell(
        self, method: Method, budget: int, cells: dict[str, Any], known: dict[str, Any], seeds: int, count: int
    ) -> Iterator[dict[str, Any]]:
        """The scores of a method within a budget, after its tuning and each of its seeds, beside those that are known.

        Args:
            method, budget: what is measured.
            cells: all that is known, by name and budget.
            known: this cell, as far as it is known.
            seeds, count: scored at the end, and samples of each; half as many decide about the times.
        """
        cell: dict[str, Any] = {"scores": {}, "clipped": False, **known}
        if len(cell["scores"]) >= seeds:
            return
        sampler: Sampler | None = None
        if "trajectory" not in cell:
            cell["tuning"] = {}
            candidates = self.candidates(method, budget, cells)
            for name, clipped in candidates:
                times = self.times(name, method.steps(budget))
                sampler = self.sampler(method, times, clipped)
                samples, _ = self.draw(sampler, method.var, times, count // 2, TUNING_SEED)
                score = self.reference.scores(samples)["features"]
                cell["tuning"][name + CLIPPED * clipped] = round(score, 3) if math.isfinite(score) else 1e9
            best = min(cell["tuning"], key=cell["tuning"].__getitem__)
            cell |= {"trajectory": best.removesuffix(CLIPPED), "clipped": best.endswith(CLIPPED)}
            sampler = sampler if len(candidates) == 1 else None
        times = self.times(cell["trajectory"], method.steps(budget))
        sampler = sampler or self.sampler(method, times, cell["clipped"])
        cell |= {key: [round(float(v), 3) for v in value] for key, value in sampler.measured().items()}
        for seed in range(seeds):
            if str(seed) not in cell["scores"]:
                samples, ne = self.draw(sampler, method.var, times, count, seed)
                cell |= {"steps": len(times), "ne": round(ne, 3)}
                cell["scores"][str(seed)] = {k: float(f"{v:.4g}") for k, v in self.reference.scores(samples).items()}
                yield cell


def oracle() -> War:
    """The exact mean of the mixture of digits, and truncations of its exact C."""
    mixture = digits_mixture()
    denoiser = exact(ExactNetwork(mixture, DIM))
    draws = mixture.sample(4000, torch.Generator().manual_seed(7))

    def strategy(name: str) -> VarianceStrategy:
        ranks = {"diagonal": 0, "rank_4": 4, "full": None}
        if name in ranks:
            return Truncated(denoiser, mixture, ranks[name])
        images = None if name == "beta_tilde" else draws.float()
        return optcov.fit(name, denoiser, images, progress=False)

    reference = Reference(draws, mixture.mean(), mixture.covariance())
    compared = methods(["diagonal", "rank_4", "full", "data_cov"], {})
    return War(
        "oracle",
        denoiser,
        draws[:2000],
        reference,
        strategy,
        compared,
        trajectories=("quadratic", "even", "log_snr"),
        clipping=(False,),
        cut=None,
        dtype=torch.float64,
    )


TRAINED = ("npr_dpm", "sn_dpm", "nll", "low_rank", "dct_head", "kdct")
MEASURED = ("low_rank", "npr_dpm", "data_cov")  # with every kind of mean and at every budget


def learned(run: Path) -> War:
    """A learned network, with strategies fitted to it; heads are trained for 600 steps of 64 images."""
    denoiser, data = optcov.load(run), DigitsData()
    images = data.calibration(1500)

    def strategy(name: str) -> VarianceStrategy:
        if name == "lgs":
            return optcov.fit("lgs", denoiser, difference=0.01)
        steps = 600 if name in TRAINED else None
        return optcov.fit(name, denoiser, None if name == "beta_tilde" else images, steps, progress=False)

    compared = methods([*TRAINED, "data_cov"], {"lgs": 3})
    reference = Reference(data.normalize(data.load("train")))
    return War("learned", denoiser, images, reference, strategy, compared, priority=priority)


def priority(name: str, budget: int) -> int:
    """1 for what is measured at every budget, or at 5 network equivalents alone; 2 for other strategies there."""
    mean, _, var = name.partition(" + ")
    if not var:
        return int(not mean.startswith(("3M b", "iPNDM b")))
    means = ["DDIM", "2M matched", "2M shaped", "UniPC shaped"] + ["2M balanced", "DEIS shaped", "DDPM"] * (budget == 5)
    if mean in means and var in (MEASURED if "shaped" in mean else MEASURED[:2]):
        return 1
    return 2 * (budget == 5 and mean in ("DDIM", "2M matched", "2M shaped"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", help="oracle, or the folder of a run of digits")
    parser.add_argument("--calls", type=int, nargs="*", default=list(BUDGETS), help="network equivalents")
    parser.add_argument("--seeds", type=int, help=f"default, by network equivalents: {BUDGETS}")
    parser.add_argument("--count", type=int, default=400, help="samples scored")
    parser.add_argument("--methods", nargs="*", help="by name; default: all")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after the score that is then being measured"
    )
    parser.add_argument("--output", type=Path, help="a json; default: benchmarks/results/budget_NETWORK.json")
    args = parser.parse_args()
    if args.network is None:
        budget_page.write()
        return
    war = oracle() if args.network == "oracle" else learned(Path(args.network))
    output = args.output or RESULTS / f"budget_{war.name}.json"
    found = json.loads(output.read_text()) if output.exists() else {"count": args.count, "cells": {}}
    if found["count"] != args.count:
        parser.error(f"--count must be {found['count']}, as in {output} (got {args.count})")
    end = time.monotonic() + 60 * args.minutes
    cells = [(budget, name) for budget in args.calls for name in args.methods or ()] or war.chosen(args.calls)
    for budget, name in cells:
        key, seeds = f"{name} @ {budget}", args.seeds or BUDGETS.get(budget, 3)
        known = found["cells"].get(key, {})
        for cell in war.cell(war.methods[name], budget, found["cells"], known, seeds, args.count):
            found["cells"][key] = cell
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, json.dumps(found, indent=1) + "\n")
            if time.monotonic() > end:
                return
        mean, half = budget_page.interval([each["features"] for each in found["cells"][key]["scores"].values()])
        print(f"{key:36} {found['cells'][key]['trajectory']:10} features {mean:.4g} ± {half:.2g}", flush=True)


if __name__ == "__main__":
    main()
