"""The methods of the table: truncations of the exact C conditioned on a measurement, and rivals.

Our truncations stand for what a head could learn: the diagonal of C, a diagonal with the directions of its 4 or 8
largest eigenvalues, or all of it.  Rivals take products with the exact C.  All take quadratic DDPM steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, LowRankCovariance
from optcov.covbench.truths import Truth
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import MeasurementGuidance
from optcov.kernel import ReverseKernel
from optcov.oracle import GaussianMixture
from optcov.posterior import rivals
from optcov.posterior.tasks import NOISE, SCHEDULE, ExactNetwork, Task, exact
from optcov.sampler import DDPMSampler
from optcov.sampler.noise import NoiseStream
from optcov.trajectory import QuadraticTrajectory
from optcov.variance.base import Closed


@dataclass(frozen=True)
class Drawn:
    """What a method returns.

    Args:
        samples: ``[n, count, d]``.
        ne: network equivalents of a sample.
        seconds: of the thread for a sample, without those that the exact network and its C take.
        choice: the constants that were chosen on other data, if there are any.
    """

    samples: Tensor
    ne: int
    seconds: float
    choice: str | None = None


class Sampler(Protocol):
    """A method of the table."""

    def cost(self, task: Task) -> int:
        """Network equivalents of a step; 0 for a method that does not fit the task."""

    def draw(self, task: Task, other: Task, steps: int, count: int, seed: int) -> Drawn:
        """Draw samples of each measurement; ``other`` is the same task on other data, for constants."""


class Truncated(Closed):
    """The exact C, reduced to its diagonal and the directions of its r largest eigenvalues.

    Args:
        denoiser: the exact denoiser.
        truth: the distribution of its data.
        rank: r; 0 for the diagonal alone, None for all of C.
    Attributes:
        seconds: of this thread, which all C took.
    """

    def __init__(self, denoiser: Denoiser, truth: Truth, rank: int | None) -> None:
        super().__init__(denoiser)
        self.truth, self.rank, self.seconds = truth, rank, 0.0

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        began = time.thread_time()
        found = self._covariance(denoiser, prediction)
        self.seconds += time.thread_time() - began
        return found

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return self.covariance(denoiser, prediction)  # an exact C is within all bounds

    def _covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        exact = self.truth.posterior(prediction.x_t, prediction.level.alpha, prediction.level.sigma)[1]
        if self.rank is None:
            return FullCovariance(exact, denoiser.data_shape)
        if self.rank == 0:
            return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))
        values, vectors = (each.double() for each in torch.linalg.eigh(exact.float()))  # half the time
        factor = (vectors * values.clamp(min=0).sqrt()[:, None])[..., -self.rank :].mT
        left = exact.diagonal(dim1=1, dim2=2) - (factor**2).sum(1)
        return LowRankCovariance(left.clamp(min=0), factor)


@dataclass(frozen=True)
class Ours:
    """This package, by one network call per step.

    Args:
        rank: of the truncation; None for all of C, 0 for its diagonal.
    """

    rank: int | None

    def cost(self, task: Task) -> int:
        return 0 if self.rank is not None and self.rank >= task.images.shape[1] else 1

    def draw(self, task: Task, other: Task, steps: int, count: int, seed: int) -> Drawn:
        network, dim = ExactNetwork(task.truth, task.images.shape[1]), task.images.shape[1]
        denoiser = exact(network)
        y = task.y.repeat_interleave(count, 0)
        guidance = MeasurementGuidance(denoiser, operator=task.operator, y=y, noise=NOISE)
        times = QuadraticTrajectory().times(SCHEDULE, steps)
        noise = NoiseStream(seed, range(len(y)), (dim,), dtype=torch.float64)
        sampler, strategy = DDPMSampler(len(times), clip_x0=False, cut=None), Truncated(denoiser, task.truth, self.rank)
        began = time.thread_time()
        samples = sampler.sample(denoiser, strategy, times, noise, guidance=guidance)
        taken = time.thread_time() - began - strategy.seconds - network.seconds
        ne = round(denoiser.cost.ne / len(y))
        return Drawn(samples.reshape(-1, count, dim), ne, taken / len(y))


class ExactUpdate:
    """A yardstick: steps with the exact mean and covariance of ``p(x_0 | x_t, y)``, which is no Gaussian.

    What is left of the distance is that of Gaussian steps; the rest of full C's is that of the Gaussian update.
    """

    def cost(self, task: Task) -> int:
        return int(isinstance(task.truth, GaussianMixture))

    def draw(self, task: Task, other: Task, steps: int, count: int, seed: int) -> Drawn:
        times = QuadraticTrajectory().times(SCHEDULE, steps)
        levels, data = SCHEDULE.levels(times).flip(), SCHEDULE.levels(times.new_zeros(()))
        dim, found = task.images.shape[1], []
        for row, mixture in enumerate(task.posteriors):
            assert isinstance(mixture, GaussianMixture)
            noise = NoiseStream(seed, range(row * count, (row + 1) * count), (dim,), dtype=torch.float64)
            x = noise.draw()
            for i in range(len(times)):
                t, is_last = levels[i], i == len(times) - 1
                m, matrix = mixture.posterior(x, t.alpha, t.sigma)
                covariance: Covariance = FullCovariance(matrix, (dim,))
                kernel = ReverseKernel.from_levels(data if is_last else levels[i + 1], t)
                mean = m if is_last else kernel.mean(m, (x - t.alpha * m) / t.sigma)
                x = mean + (covariance if is_last else kernel.covariance(covariance)).draw(noise)
            found.append(x)
        return Drawn(torch.stack(found), steps, float("nan"))


@dataclass(frozen=True)
class Rival:
    """A published sampler.

    Args:
        choices: its constants by name, of which the one with the least energy distance on other data is taken.
        products: number of products a step, by the number of measurements.
        repeats: how often each step is taken; noise is added again in between (RePaint).
        masks_only: whether it takes no other operators.
    """

    choices: dict[str, rivals.Method]
    products: Callable[[int], int]
    repeats: int = 1
    masks_only: bool = False

    def cost(self, task: Task) -> int:
        if self.masks_only and not task.operator.selects:
            return 0
        return self.repeats * (1 + 2 * self.products(task.y.shape[1]))

    def draw(self, task: Task, other: Task, steps: int, count: int, seed: int) -> Drawn:
        if len(self.choices) == 1:
            (method,) = self.choices.values()
            return self._drawn(task, method, steps, count, seed)
        errors = {name: other.scores(self._drawn(other, method, steps, count, seed + 1).samples)["energy"][0]
                  for name, method in self.choices.items()}  # fmt: skip
        best = min(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
        found = self._drawn(task, self.choices[best], steps, count, seed)
        return Drawn(found.samples, found.ne, found.seconds, best)

    def _drawn(self, task: Task, method: rivals.Method, steps: int, count: int, seed: int) -> Drawn:
        times = QuadraticTrajectory().times(SCHEDULE, steps)
        levels, data = SCHEDULE.levels(times).flip(), SCHEDULE.levels(times.new_zeros(()))
        y = task.y.repeat_interleave(count, 0)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(y), task.images.shape[1], dtype=torch.float64, generator=generator)
        matrix, ne, seconds = task.operator.matrix(x), 0, 0.0
        gram = float((matrix[0] ** 2).sum())
        for i in range(len(times)):
            is_last = i == len(times) - 1
            t, s = levels[i], data if is_last else levels[i + 1]
            for repeat in range(self.repeats):
                m, covariance = task.truth.posterior(x, t.alpha, t.sigma)

                def times_c(v: Tensor, covariance: Tensor = covariance) -> Tensor:
                    image: Tensor = (covariance @ v[..., None])[..., 0]
                    return image

                step = rivals.Step(x, m, times_c, t, s, is_last, matrix, gram, y, NOISE, generator)
                began = time.thread_time()
                x = method(step)
                if repeat < self.repeats - 1:
                    x = step.back(x)
                seconds += time.thread_time() - began
                ne += 1 + 2 * step.products
        return Drawn(x.reshape(len(task.y), count, -1), ne, seconds / len(y))


def one(method: rivals.Method, products: int, **settings: bool | int) -> Rival:
    """A rival without constants, with this many products a step."""
    return Rival({"": method}, lambda _: products, **settings)  # type: ignore[arg-type]


DPS = {f"{size:g}": rivals.dps(size) for size in (0.1, 0.3, 1.0, 3.0)}
DIFFPIR = {f"{w:g} {z:g}": rivals.diffpir(w, z) for w in (1.0, 8.0) for z in (0.3, 1.0)}
METHODS: dict[str, Sampler] = {
    "diagonal": Ours(0),
    "rank_4": Ours(4),
    "rank_8": Ours(8),
    "full": Ours(None),
    "exact_update": ExactUpdate(),
    "pi_gdm": one(rivals.pi_gdm, 1),
    "mmps_1": one(rivals.mmps(1), 2),
    "mmps_3": one(rivals.mmps(3), 4),
    "mmps_10": one(rivals.mmps(10), 11),
    "mmps_exact": Rival({"": rivals.mmps(None)}, lambda measured: measured + 1),
    "tmpd": one(rivals.tmpd, 2),
    "ddnm": one(rivals.ddnm, 0),
    "diffpir": Rival(DIFFPIR, lambda _: 0),
    "dps": Rival(DPS, lambda _: 1),
    "repaint": one(rivals.repaint, 0, repeats=2, masks_only=True),
}
NAMES = {
    "exact": "exact samples",
    "diagonal": "**diagonal C**",
    "rank_4": "**diagonal + rank 4**",
    "rank_8": "**diagonal + rank 8**",
    "full": "**full C**",
    "exact_update": "exact update, Gaussian steps",
    "pi_gdm": "Pi-GDM",
    "mmps_1": "MMPS, CG 1",
    "mmps_3": "MMPS, CG 3",
    "mmps_10": "MMPS, CG 10",
    "mmps_exact": "MMPS, solved exactly",
    "tmpd": "TMPD",
    "ddnm": "DDNM+",
    "diffpir": "DiffPIR, tuned",
    "dps": "DPS, tuned",
    "repaint": "RePaint, each step twice",
}
