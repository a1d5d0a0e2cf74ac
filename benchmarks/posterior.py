r"""Compares posterior samplers with exact posteriors, for digits as a mixture of ten Gaussians with its exact network.

    python -m benchmarks.posterior                       CSV: a line for each task, method and cost
    python -m benchmarks.posterior --steps 10 --calls    all methods at ten steps, whatever they cost

The mixture has the mean and covariance of each class of the training digits.  Every score is an average over
measurements of images drawn from it, with its standard error.  Our methods condition truncations of the exact C: its
diagonal, a diagonal with the directions of its 4 or 8 largest eigenvalues, or all of it.

    energy      2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples and the exact posterior, unbiased
    rmse        error of the samples' mean against the mean of the exact posterior
    c50 c90 c95 how often central intervals of the samples contain the truth, in %, for unmeasured pixels
    crps        continuous ranked probability score of the truth, unbiased, for unmeasured pixels
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.rivals import Method, Step
from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, LowRankCovariance
from optcov.covbench.truths import digits_mixture
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import MeasurementGuidance
from optcov.inverse import BlockAverage, Mask, MatrixOperator, Operator
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDPMSampler
from optcov.sampler.noise import NoiseStream
from optcov.schedule import LinearSchedule
from optcov.trajectory import QuadraticTrajectory
from optcov.variance.base import Closed

SIDE, DIM, NOISE = 8, 64, 0.1
SCHEDULE = LinearSchedule(1000)
CALLS = (10, 25, 50)  # network equivalents


class OneLevelMixture(GaussianMixture):
    """A mixture for batches that share one level; it makes each component's covariance once and caches the result."""

    remembered: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def posterior(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, components: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.remembered is None or self.remembered[0] is not x_t:
            self.remembered = x_t, self._posterior(x_t, alpha.reshape(-1)[0], sigma.reshape(-1)[0])
        return self.remembered[1]

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, components: Tensor | None = None) -> Tensor:
        return self.posterior(x_t, alpha, sigma)[0]

    def _posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = alpha**2 * self.variances + sigma**2
        rotated = torch.einsum("kij,bki->bkj", self.axes, x_t[:, None] - alpha * self.means)
        share = (self.weights.log() - (rotated**2 / total + total.log()).sum(2) / 2).softmax(1)
        means = self.means + torch.einsum("kij,bkj->bki", self.axes, alpha * self.variances / total * rotated)
        own = (self.axes * (sigma**2 * self.variances / total)[:, None]) @ self.axes.mT
        mean = torch.einsum("bk,bki->bi", share, means)
        centred = share.sqrt()[..., None] * (means - mean[:, None])
        return mean, (share @ own.flatten(1)).reshape(-1, DIM, DIM) + centred.mT @ centred


class Truncated(Closed):
    """The exact C, reduced to its diagonal and the directions of its r largest eigenvalues; None for all of it."""

    def __init__(self, denoiser: Denoiser, rank: int | None) -> None:
        super().__init__(denoiser)
        self.rank = rank

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        exact: Tensor = denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]  # type: ignore[union-attr, operator]
        if self.rank is None:
            return FullCovariance(exact, denoiser.data_shape)
        if self.rank == 0:
            return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))
        values, vectors = torch.linalg.eigh(exact)
        factor = (vectors * values.clamp(min=0).sqrt()[:, None])[..., -self.rank :].mT
        left = exact.diagonal(dim1=1, dim2=2) - (factor**2).sum(1)
        return LowRankCovariance(left.clamp(min=0), factor)

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return self.covariance(denoiser, prediction)  # an exact C is within all bounds


@dataclass
class Task:
    """Measurements of images, with exact samples of each posterior."""

    name: str
    operator: Operator
    hidden: Tensor  # pixels that are scored against the truth
    truth: Tensor  # [n, d]
    y: Tensor  # [n, m]
    posteriors: list[GaussianMixture]
    exact: Tensor  # [n, count, d]

    @classmethod
    def made(cls, name: str, mixture: GaussianMixture, measurements: int, count: int, seed: int) -> Task:
        """Make a task by name: ``inpaint`` (the lower half is hidden) or ``superres`` (means of 2 x 2 pixels)."""
        generator = torch.Generator().manual_seed(seed)
        operators: dict[str, Operator] = {
            "inpaint": Mask((DIM,), torch.arange(DIM) < DIM // 2),
            "superres": MatrixOperator((DIM,), BlockAverage((1, SIDE, SIDE), 2).matrix(mixture.means)),
        }
        operator, truth = operators[name], mixture.sample(measurements, generator)
        y = operator(truth)
        y = y + NOISE * torch.randn(y.shape, dtype=torch.float64, generator=generator)
        posteriors = [mixture.measured(operator.matrix(truth), row, NOISE) for row in y]
        exact = torch.stack([each.sample(count, generator) for each in posteriors])
        seen = operator.matrix(truth).abs().sum(0) if operator.selects else torch.zeros(DIM)
        return cls(name, operator, seen == 0, truth, y, posteriors, exact)

    def scores(self, samples: Tensor) -> dict[str, tuple[float, float]]:
        """Score samples ``[n, count, d]``: the mean of each score over measurements, and its standard error."""
        n, count = samples.shape[:2]
        within = torch.cdist(samples, samples).sum((1, 2)) / (count * (count - 1))
        other = torch.cdist(self.exact, self.exact).sum((1, 2)) / (self.exact.shape[1] * (self.exact.shape[1] - 1))
        energy = 2 * torch.cdist(samples, self.exact).mean((1, 2)) - within - other
        means = torch.stack([each.mean() for each in self.posteriors])
        error = ((samples.mean(1) - means) ** 2).mean(1)
        found = {"energy": energy, "mse": error} | against(self.truth[:, self.hidden], samples[..., self.hidden])
        return {key: (float(value.mean()), float(value.std() / n**0.5)) for key, value in found.items()}


def against(truth: Tensor, samples: Tensor) -> dict[str, Tensor]:
    """Score samples ``[n, count, d]`` by a truth ``[n, d]``: coverage of central intervals in % and CRPS, ``[n]``."""
    count, ordered = samples.shape[1], samples.sort(1).values
    found = {}
    for level in (50, 90, 95):
        low, high = (_quantile(ordered, end) for end in (0.5 - level / 200, 0.5 + level / 200))
        found[f"c{level}"] = 100 * ((low <= truth) & (truth <= high)).double().mean(1)
    rank = 2 * torch.arange(1, count + 1)[None, :, None] - count - 1
    spread = (rank * ordered).sum(1) / (count * (count - 1))  # half of E|X - X'|
    return found | {"crps": ((ordered - truth[:, None]).abs().mean(1) - spread).mean(1)}


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """The quantile, between two of n ordered samples, below which a new sample of the same law falls at this rate."""
    place = min(max(level * (ordered.shape[1] + 1) - 1, 0.0), ordered.shape[1] - 1.0)
    low = int(place)
    return ordered[:, low].lerp(ordered[:, min(low + 1, ordered.shape[1] - 1)], place - low)


def digits() -> OneLevelMixture:
    """Make the mixture of this benchmark."""
    made = digits_mixture()
    return OneLevelMixture(made.means, made.covariances, made.weights)


def exact(mixture: GaussianMixture) -> Denoiser:
    """Make the exact denoiser of the mixture, without bounds."""
    return Denoiser(OracleNetwork((DIM,), mixture, SCHEDULE), SCHEDULE, data_range=DataRange(None, None)).eval()


def ours(denoiser: Denoiser, task: Task, rank: int | None, steps: int, count: int, seed: int) -> Tensor:
    """Draw samples ``[n, count, d]`` with this package, by one network call per step."""
    guidance = MeasurementGuidance(denoiser, operator=task.operator, y=task.y.repeat_interleave(count, 0), noise=NOISE)
    times = QuadraticTrajectory().times(SCHEDULE, steps)
    noise = NoiseStream(seed, range(len(task.y) * count), (DIM,), dtype=torch.float64)
    sampler = DDPMSampler(len(times), clip_x0=False, cut=None)
    return sampler.sample(denoiser, Truncated(denoiser, rank), times, noise, guidance=guidance).reshape(-1, count, DIM)


def theirs(
    denoiser: Denoiser, task: Task, method: Method, steps: int, count: int, seed: int, repeats: int = 1
) -> tuple[Tensor, int]:
    """Draw samples ``[n, count, d]`` with a rival; return them with the network equivalents of a sample.

    Args:
        denoiser: the exact denoiser.
        task: the measurements.
        method: the rival.
        steps, count, seed: number of steps, of samples for each measurement, and the seed.
        repeats: how often each step is taken; noise is added again in between (RePaint).
    """
    times = QuadraticTrajectory().times(SCHEDULE, steps)
    levels, data = SCHEDULE.levels(times).flip(), SCHEDULE.levels(times.new_zeros(()))
    y = task.y.repeat_interleave(count, 0)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(y), DIM, dtype=torch.float64, generator=generator)
    matrix, calls = task.operator.matrix(x), 0
    gram = float((matrix[0] ** 2).sum())
    for i in range(len(times)):
        last = i == len(times) - 1
        t, s = levels[i], data if last else levels[i + 1]
        for repeat in range(repeats):
            mixture = denoiser.network.mixture
            m, covariance = mixture.posterior(x, t.alpha, t.sigma)  # type: ignore[union-attr, operator]

            def times_c(v: Tensor, covariance: Tensor = covariance) -> Tensor:
                image: Tensor = (covariance @ v[..., None])[..., 0]
                return image

            step = Step(x, m, times_c, t, s, last, matrix, gram, y, NOISE, generator)
            x = method(step)
            calls += 1 + 2 * step.products
            if repeat < repeats - 1:
                keep = t.alpha / s.alpha
                added = (t.sigma**2 - keep**2 * s.sigma**2).sqrt()
                x = keep * x + added * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return x.reshape(-1, count, DIM), calls


def tuned(denoiser: Denoiser, task: Task, choices: dict[str, Method], steps: int, count: int) -> Method:
    """The choice with the smallest energy distance on other data."""
    scored = {
        name: task.scores(theirs(denoiser, task, method, steps, count, 1)[0])["energy"][0]
        for name, method in choices.items()
    }
    return choices[min(scored, key=lambda name: scored[name] if scored[name] == scored[name] else float("inf"))]


DPS = {f"{size:g}": rivals.dps(size) for size in (0.1, 0.3, 1.0, 3.0)}
DIFFPIR = {f"{w:g} {z:g}": rivals.diffpir(w, z) for w in (1.0, 8.0) for z in (0.3, 1.0)}
RIVALS: dict[str, tuple[Method | dict[str, Method], int, int]] = {  # method, equivalents a step, repeats
    "pi_gdm": (rivals.pi_gdm, 3, 1),
    "mmps_1": (rivals.mmps(1), 5, 1),
    "mmps_3": (rivals.mmps(3), 9, 1),
    "mmps_10": (rivals.mmps(10), 23, 1),
    "mmps_exact": (rivals.mmps(None), 67, 1),
    "tmpd": (rivals.tmpd, 5, 1),
    "ddnm": (rivals.ddnm, 1, 1),
    "diffpir": (DIFFPIR, 1, 1),
    "dps": (DPS, 3, 1),
    "repaint": (rivals.repaint, 2, 2),
}
OURS = {"diagonal": 0, "rank_4": 4, "rank_8": 8, "full": None}


def rows(
    denoiser: Denoiser,
    task: Task,
    other: Task,
    count: int,
    budgets: list[int],
    fixed: bool,
    methods: Collection[str],
) -> Iterator[tuple[str, int, int, dict[str, tuple[float, float]]]]:
    """Yield method, number of steps, network equivalents and scores.

    Args:
        denoiser: the exact denoiser.
        task: the task to score.
        other: the same task on other data, on which rivals are tuned.
        count: number of samples for each measurement.
        budgets: network equivalents, or numbers of steps.
        fixed: whether the budgets are numbers of steps.
        methods: names in `OURS` and `RIVALS`.
    """
    for budget in budgets:
        for name, rank in ((name, OURS[name]) for name in OURS if name in methods):
            yield name, budget, budget, task.scores(ours(denoiser, task, rank, budget, count, 0))
        for name, (method, cost, repeats) in RIVALS.items():
            steps = budget if fixed else budget // cost
            if steps < 2 or name not in methods or (name == "repaint" and task.name != "inpaint"):
                continue
            chosen = tuned(denoiser, other, method, steps, count) if isinstance(method, dict) else method
            samples, calls = theirs(denoiser, task, chosen, steps, count, 0, repeats)
            yield name, steps, calls, task.scores(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=int, default=16)
    parser.add_argument("--samples", type=int, default=32, help="number of samples of each posterior")
    parser.add_argument("--tasks", nargs="*", default=["inpaint", "superres"])
    parser.add_argument("--calls", nargs="*", type=int, default=list(CALLS), help="network equivalents of a sample")
    parser.add_argument("--steps", nargs="*", type=int, default=[], help="numbers of steps, the same for all methods")
    parser.add_argument("--methods", nargs="*", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    args = parser.parse_args()
    mixture = digits()
    denoiser = exact(mixture)
    print("task,method,steps,ne,energy,energy_se,rmse,c50,c90,c90_se,c95,crps,crps_se")
    for name in args.tasks:
        task = Task.made(name, mixture, args.measurements, args.samples, 0)
        other = Task.made(name, mixture, max(args.measurements // 4, 2), args.samples, 1)
        floor = torch.stack([each.sample(args.samples, torch.Generator().manual_seed(5)) for each in task.posteriors])
        found: list[tuple[str, int, int, dict[str, tuple[float, float]]]] = [("exact", 0, 0, task.scores(floor))]
        for line in found:
            print(_line(name, *line), flush=True)
        for budgets, fixed in ((args.steps, True), (args.calls, False)):
            for line in rows(denoiser, task, other, args.samples, budgets, fixed, args.methods):
                print(_line(name, *line), flush=True)


def _line(task: str, method: str, steps: int, calls: int, scores: dict[str, tuple[float, float]]) -> str:
    """Format one line of the table."""
    values = [
        *scores["energy"], scores["mse"][0] ** 0.5, scores["c50"][0], *scores["c90"], scores["c95"][0], *scores["crps"],
    ]  # fmt: skip
    return ",".join([task, method, str(steps), str(calls), *(f"{value:.4g}" for value in values)])


if __name__ == "__main__":
    main()
