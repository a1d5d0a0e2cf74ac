"""Tasks whose posteriors are known: an exact network, a measurement, and the posterior of each.

    digits_inpaint    a mixture with the mean and covariance of each class of 8x8 digits; the lower half is hidden
    digits_superres   the same; means of 2x2 pixels
    field_pixels      a Gaussian field of 8x8 pixels; a random quarter of them is measured
    finite_inpaint    300 training digits with a little white noise each; the lower half is hidden
    ring              eight Gaussians on a circle in two dimensions; the first coordinate is measured, 16 times as often

A mixture conditioned on a linear measurement is a mixture again, and so is a finite set of points, whose posterior
weights them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from optcov.covbench.truths import DIM, SHAPE, Blurred, Truth, digits_mixture, finite_digits, gaussian_field
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.inverse import BlockAverage, Mask, MatrixOperator, Operator
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.posterior.scores import against, against_posterior
from optcov.schedule import LinearSchedule

NOISE = 0.1
SCHEDULE = LinearSchedule(1000)
Scores = dict[str, tuple[float, float]]
"""The mean of each score over measurements, and its standard error."""


class Posterior(Protocol):
    """The distribution of x_0 given y."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor: ...
    def mean(self) -> Tensor: ...


class WeightedPoints:
    """Points with weights, each with the same Gaussian around it: a finite data set given a measurement.

    Args:
        data: the points before the measurement.
        matrix: A, ``[m, d]``.
        y: ``[m]``.
        noise: positive.
    """

    def __init__(self, data: Blurred, matrix: Tensor, y: Tensor, noise: float) -> None:
        blur = data.variance
        total = blur * matrix @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(total, blur * matrix).T
        residual = y - data.points @ matrix.T
        self.points = data.points + residual @ gain.T
        self.weights = (-(residual * torch.linalg.solve(total, residual.T).T).sum(1) / 2).softmax(0)
        left = blur * (torch.eye(matrix.shape[1], dtype=torch.float64) - gain @ matrix)
        self.root = torch.linalg.cholesky((left + left.T) / 2)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[count, d]``."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.points.shape[1], dtype=torch.float64, generator=generator)
        drawn: Tensor = self.points[chosen] + z @ self.root.T
        return drawn

    def mean(self) -> Tensor:
        """``[d]``."""
        mean: Tensor = self.weights @ self.points
        return mean


class ExactNetwork(nn.Module):
    """The exact mean of a truth, as a network that predicts x_0.

    Args:
        truth: the distribution of the data, in ``dim`` dimensions.
    Attributes:
        seconds: of the thread, which all calls took.
    """

    def __init__(self, truth: Truth, dim: int) -> None:
        super().__init__()
        self.truth, self.data_shape, self.feature_channels, self.seconds = truth, (dim,), dim, 0.0

    def forward(self, x_t: Tensor, network_time: Tensor) -> tuple[Tensor, Tensor]:
        began = time.thread_time()
        level = SCHEDULE.levels(network_time.double() / 1000)
        mean = self.truth.posterior_mean(x_t.double(), level.alpha, level.sigma)
        self.seconds += time.thread_time() - began
        return mean, mean


def exact(network: ExactNetwork) -> Denoiser:
    """The denoiser of an exact network, without bounds."""
    return Denoiser(network, SCHEDULE, X0(), data_range=DataRange(None, None)).eval()


def ring() -> GaussianMixture:
    """Eight Gaussians of standard deviation 0.1 on a circle of radius 0.7."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(0.7 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.01))


def few_digits() -> Blurred:
    """The first 300 of covbench's finite data set."""
    data = finite_digits()
    return Blurred(data.points[:300], data.variance)


def lower_half() -> Operator:
    """The lower half of 8x8 pixels is hidden."""
    return Mask((DIM,), torch.arange(DIM) < DIM // 2)


def block_means() -> Operator:
    """Means of 2x2 pixels."""
    return MatrixOperator((DIM,), BlockAverage(SHAPE, 2).matrix(torch.zeros((), dtype=torch.float64)))


def quarter() -> Operator:
    """A random quarter of 64 values is measured."""
    chosen = torch.randperm(DIM, generator=torch.Generator().manual_seed(0))[: DIM // 4]
    return Mask((DIM,), torch.zeros(DIM).index_fill(0, chosen, 1.0))


def first_of_two() -> Operator:
    """The first of two coordinates."""
    return Mask((2,), torch.tensor([1, 0]))


TASKS: dict[str, tuple[Callable[[], Truth], Callable[[], Operator], int]] = {  # and how many times more measurements
    "digits_inpaint": (digits_mixture, lower_half, 1),
    "digits_superres": (digits_mixture, block_means, 1),
    "field_pixels": (gaussian_field, quarter, 1),
    "finite_inpaint": (few_digits, lower_half, 1),
    "ring": (ring, first_of_two, 16),  # in which one value of each is scored
}


@dataclass(frozen=True)
class Task:
    """Measurements of images, with exact samples of each posterior.

    Args:
        truth: the distribution of the data.
        operator: A, with ``A A^T = gram I``, which the rivals need.
        scored: which values are scored against the truth: those that are not measured; all if A only mixes values.
        images: x_0, ``[n, d]``.
        y: ``[n, m]``.
        posteriors: of each measurement.
        exact: samples of them, ``[n, count, d]``.
    """

    truth: Truth
    operator: Operator
    scored: Tensor
    images: Tensor
    y: Tensor
    posteriors: list[Posterior]
    exact: Tensor

    @classmethod
    def made(cls, name: str, measurements: int, count: int, seed: int) -> Task:
        """Make a task of `TASKS`."""
        make_truth, make_operator, times = TASKS[name]
        truth, operator, generator = make_truth(), make_operator(), torch.Generator().manual_seed(seed)
        images = truth.sample(times * measurements, generator)
        y = operator(images)
        y = y + NOISE * torch.randn(y.shape, dtype=torch.float64, generator=generator)
        matrix = operator.matrix(images)
        posteriors = [posterior_of(truth, matrix, row) for row in y]
        exact = torch.stack([each.sample(count, generator) for each in posteriors])
        seen = matrix.abs().sum(0) if operator.selects else torch.zeros(matrix.shape[1])
        return cls(truth, operator, seen == 0, images, y, posteriors, exact)

    def scores(self, samples: Tensor) -> Scores:
        """Score samples ``[n, count, d]``; see `optcov.posterior.scores`."""
        means = torch.stack([each.mean() for each in self.posteriors])
        found = against_posterior(samples, self.exact, means)
        found |= against(self.images[:, self.scored], samples[..., self.scored])
        return {key: (float(value.mean()), float(value.std() / len(samples) ** 0.5)) for key, value in found.items()}

    def again(self, count: int) -> Tensor:
        """Other samples of the exact posteriors, ``[n, count, d]``: the best that any sampler can do."""
        generator = torch.Generator().manual_seed(5)
        return torch.stack([each.sample(count, generator) for each in self.posteriors])


def posterior_of(truth: Truth, matrix: Tensor, y: Tensor) -> Posterior:
    """The distribution of x_0 given a measurement, ``[m]``."""
    if isinstance(truth, Blurred):
        return WeightedPoints(truth, matrix, y, NOISE)
    assert isinstance(truth, GaussianMixture)
    return truth.measured(matrix, y, NOISE)
