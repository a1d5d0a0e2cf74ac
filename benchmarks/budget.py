r"""The budget war: solvers and covariances at equal network equivalents (NE), on digits.

    python -m benchmarks.budget oracle                        the exact mean of a mixture of ten Gaussians
    python -m benchmarks.budget RUN --calls 5 10              a learned network: the folder of a run
    python -m benchmarks.budget --table                       the tables in Markdown, from what is there

Every method takes the best of the trajectories by its features distance on a seed that is scored for none, and is then
scored on others.  Cells are written to ``benchmarks/results/budget_*.json`` one by one, and found there again: a killed
run goes on where it was, and another number of seeds adds to them.

    fd_pixel    Frechet distance of pixels, to the mixture itself or to the training images
    features    that of the 32 features of a small classifier of digits, trained here
    energy      energy distance, to 1500 images
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

import optcov
from optcov.covbench.truths import DIM, digits_mixture
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.metric.frechet import frechet_distance
from optcov.posterior.methods import Truncated
from optcov.posterior.tasks import ExactNetwork, exact
from optcov.registry import make
from optcov.sampler import NoiseStream, Sampler
from optcov.variance.base import Clean, VarianceStrategy

RESULTS = Path(__file__).parent / "results"
TRAJECTORIES = ("quadratic", "even", "log_snr")
SCORES = ("fd_pixel", "features", "energy")
TUNING_SEED = 1000


@dataclass(frozen=True)
class Method:
    """A sampler with a strategy; ``calls`` are the network equivalents of a step, and ``extra`` those beside the steps.

    Args:
        sampler: the name of an option.
        var: the name of a strategy of `strategies`.
        settings: of the sampler.
        calls: network equivalents of a step that is not the last.
        last: those of the last step, and of what happens once.
    """

    sampler: str
    var: str = "beta_tilde"
    settings: dict[str, Any] = field(default_factory=dict)
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
    """Everything that is compared, by name.

    Args:
        covariances: names of strategies that cost nothing beside the call.
        products: those that do, with the network equivalents of their products in a step.
    """
    found = {"DDIM": Method("ddim"), "Heun": Method("heun", calls=2)}
    for name, (sampler, settings) in SOLVERS.items():
        found[name] = Method(sampler, settings=settings)
        found[f"{name} balanced"] = Method(sampler, settings={**settings, "noise": "balanced"})
    for var in [*covariances, *products]:
        calls = 1 + products.get(var, 0)
        last = 1 + (var in products)  # a product for the bound of the last noise
        found[f"DDIM + {var}"] = Method("ddim", var, calls=calls, last=last)
        found[f"DDPM + {var}"] = Method("ddpm", var, calls=calls, last=last)
        for name in ("2M", "UniPC", "DEIS"):
            sampler, settings = SOLVERS[name]
            for noise in ("matched", "balanced") if name == "2M" else ("balanced",):
                found[f"{name} {noise} + {var}"] = Method(sampler, var, {**settings, "noise": noise}, calls, last)
    return found


class Digits(nn.Module):
    """A classifier of digits of two hidden layers; its features are those of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
        self.output = nn.Linear(32, 10)


@cache
def classifier() -> Digits:
    """Trained on the training digits by 1500 steps of gradient descent with momentum, always the same."""
    data = DigitsData()
    images, labels = data.normalize(data.load("train")), data.labels("train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Digits()
        weights = list(network.parameters())
        speed = [torch.zeros_like(each) for each in weights]
        for _ in range(1500):
            chosen = torch.randint(len(images), (128,))
            noisy = images[chosen] + 0.1 * torch.randn(len(chosen), *images.shape[1:])
            loss = nn.functional.cross_entropy(network.output(network.hidden(noisy)), labels[chosen])
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, slope, moving in zip(weights, slopes, speed, strict=True):
                    weight.sub_(0.05 * moving.mul_(0.9).add_(slope))
    return network.requires_grad_(False).eval()


def features(images: Tensor) -> Tensor:
    """Of images ``[n, ...]`` of 64 pixels, float64 ``[n, 32]``."""
    found: Tensor = classifier().hidden(images.reshape(-1, 1, 8, 8).float())
    return found.double()


class Reference:
    """Real images: what samples are compared with."""

    def __init__(self, images: Tensor, mean: Tensor | None = None, covariance: Tensor | None = None) -> None:
        self.images = images.flatten(1).double()
        self.pixels = (self.images.mean(0), self.images.T.cov()) if mean is None else (mean, covariance)
        deep = features(self.images)
        self.features = deep.mean(0), deep.T.cov()
        self.spread = float(torch.pdist(self.images[:1500]).mean())

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Of samples, ``[n, ...]``."""
        flat = samples.flatten(1).double()
        deep = features(flat)
        mean, covariance = self.pixels
        assert covariance is not None
        return {
            "fd_pixel": float(frechet_distance(flat.mean(0), flat.T.cov(), mean, covariance)),
            "features": float(frechet_distance(deep.mean(0), deep.T.cov(), *self.features)),
            "energy": float(2 * torch.cdist(flat, self.images[:1500]).mean() - torch.pdist(flat).mean() - self.spread),
        }


@dataclass
class War:
    """A network, its strategies, and what samples are compared with."""

    name: str
    denoiser: Denoiser
    images: Tensor  # clean ones, to calibrate and match with
    reference: Reference
    make_strategy: Callable[[str], VarianceStrategy]
    methods: dict[str, Method]
    dtype: torch.dtype = torch.float32
    made: dict[str, VarianceStrategy] = field(default_factory=dict)

    def strategy(self, name: str) -> VarianceStrategy:
        """Made and fitted once."""
        if name not in self.made:
            self.made[name] = self.make_strategy(name)
        return self.made[name]

    def times(self, name: str, steps: int) -> Tensor:
        """Of a trajectory, which is fitted where that is asked for."""
        trajectory = make("trajectory", name)
        if trajectory.num_images:
            chains = self.images[: trajectory.num_images].to(self.dtype)
            trajectory.fit(self.denoiser, self.strategy("beta_tilde"), Clean([chains], TUNING_SEED))
        found: Tensor = trajectory.times(self.denoiser.schedule, steps)
        return found

    def sampler(self, method: Method, steps: int, times: Tensor, chains: int) -> Sampler:
        """Fitted to the times, where that is asked for."""
        order = {"order": min(steps, method.settings["order"])} if "order" in method.settings else {}
        free = {"clip_x0": False, "cut": None} if self.name == "oracle" and method.sampler in ("ddim", "ddpm") else {}
        sampler: Sampler = make("sampler", method.sampler, num_steps=steps, **{**method.settings, **order, **free})
        if sampler.num_images:
            sampler.fit(self.denoiser, self.strategy(method.var), times, Clean([self.images[:chains]], TUNING_SEED))
        return sampler

    def draw(self, sampler: Sampler, var: str, times: Tensor, count: int, seed: int) -> tuple[Tensor, float]:
        """Samples, and their network equivalents."""
        noise = NoiseStream(seed, range(count), self.denoiser.data_shape, dtype=self.dtype)
        self.denoiser.cost.reset()
        samples = sampler.sample(self.denoiser, self.strategy(var), times, noise)
        return samples, self.denoiser.cost.ne / count

    def cell(
        self, method: Method, budget: int, known: dict[str, Any], seeds: int, count: int
    ) -> Iterator[dict[str, Any]]:
        """The scores of a method within a budget, after each of its seeds, beside those that are known."""
        cell = {
            "trajectory": None,
            "steps": method.steps(budget),
            "ne": None,
            "scores": {},
            "candidates": list(TRAJECTORIES),
            **known,
        }
        if len(cell["scores"]) >= seeds:
            return
        best: tuple[float, Sampler, Tensor] | None = None
        for name in [cell["trajectory"]] if cell["trajectory"] else cell["candidates"]:
            times = self.times(name, cell["steps"])
            sampler = self.sampler(method, len(times), times, count)
            samples, cell["ne"] = self.draw(sampler, method.var, times, count, TUNING_SEED)
            score = self.reference.scores(samples)["features"]
            score = score if math.isfinite(score) else math.inf
            if best is None or score < best[0]:
                best, cell["trajectory"] = (score, sampler, times), name
                cell |= {key: [round(float(v), 3) for v in value] for key, value in sampler.measured().items()}
        assert best is not None
        for seed in range(seeds):
            if str(seed) not in cell["scores"]:
                samples, cell["ne"] = self.draw(best[1], method.var, best[2], count, seed)
                cell["scores"][str(seed)] = self.reference.scores(samples)
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
    return War("oracle", denoiser, draws[:2000], reference, strategy, compared, torch.float64)


def learned(run: Path) -> War:
    """A learned network, with strategies fitted to it."""
    denoiser, data = optcov.load(run), DigitsData()
    images = data.calibration(1500)
    trained = ("nll", "gms", "low_rank", "sn_dpm", "kdct", "npr_dpm")

    def strategy(name: str) -> VarianceStrategy:
        if name == "lgs":
            return optcov.fit("lgs", denoiser, difference=0.01)
        steps = 400 if name in trained else None
        return optcov.fit(name, denoiser, None if name == "beta_tilde" else images, steps, progress=False)

    compared = methods(["sn_dpm", "gms", "data_cov", "low_rank"], {"lgs": 3})
    reference = Reference(data.normalize(data.load("train")))
    return War("learned", denoiser, images, reference, strategy, compared)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval by Student's t."""
    count, found = len(values), torch.tensor(values, dtype=torch.float64)
    half = float(student.ppf(0.975, count - 1) * found.std() / count**0.5) if count > 1 else math.inf
    return float(found.mean()), half


def table(cells: dict[str, Any], calls: list[int]) -> str:
    """Markdown: a row a method, for each budget NE, trajectory and scores; the best solver and the best of all bold."""
    lines: list[str] = []
    for budget in calls:
        own = {key.split(" @ ")[0]: cell for key, cell in cells.items() if key.endswith(f" @ {budget}")}
        if not own:
            continue
        lines += [f"NE = {budget}", "", "| method | times | K | NE | fd_pixel | features | energy |", "|---" * 7 + "|"]
        means = {name: interval([s["features"] for s in cell["scores"].values()])[0] for name, cell in own.items()}
        for name in sorted(own, key=means.__getitem__):
            cell = own[name]
            found = [interval([s[score] for s in cell["scores"].values()]) for score in SCORES]
            text = " | ".join(f"{mean:.3g} ± {half:.2g}" for mean, half in found)
            lines.append(f"| {name} | {cell['trajectory']} | {cell['steps']} | {cell['ne']:.3g} | {text} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", help="oracle, or the folder of a run of digits")
    parser.add_argument("--calls", type=int, nargs="*", default=[4, 5, 6, 8, 10, 15, 25], help="network equivalents")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=500, help="samples scored")
    parser.add_argument("--methods", nargs="*", help="by name; default: all")
    parser.add_argument("--trajectories", nargs="*", default=list(TRAJECTORIES), help="tried by methods that are new")
    parser.add_argument("--output", type=Path, help="a json; default: benchmarks/results/budget_NETWORK.json")
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    args = parser.parse_args()
    if args.network is None:
        for path in sorted(RESULTS.glob("budget_*.json")) if args.output is None else [args.output]:
            print(f"## {path.stem}\n\n{table(json.loads(path.read_text())['cells'], args.calls)}")
        return
    war = oracle() if args.network == "oracle" else learned(Path(args.network))
    output = args.output or RESULTS / f"budget_{war.name}.json"
    found = json.loads(output.read_text()) if output.exists() else {"count": args.count, "cells": {}}
    if found["count"] != args.count:
        parser.error(f"--count must be {found['count']}, as in {output} (got {args.count})")
    for budget in args.calls:
        for name in args.methods or war.methods:
            key = f"{name} @ {budget}"
            known = {"candidates": args.trajectories, **found["cells"].get(key, {})}
            for cell in war.cell(war.methods[name], budget, known, args.seeds, args.count):
                found["cells"][key] = cell
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(found, indent=1) + "\n")
            cell = found["cells"][key]
            mean, half = interval([each["features"] for each in cell["scores"].values()])
            print(f"{key:36} {cell['trajectory']:10} features {mean:.4g} ± {half:.2g}", flush=True)
    print(table(found["cells"], args.calls))


if __name__ == "__main__":
    main()
