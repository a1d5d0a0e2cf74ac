"""The tasks of covbench: an exact network, images to fit to, and points at which the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from optcov.covbench.truths import SHAPE, Truth, cifar_patches, digits_mixture, finite_digits, gaussian_field
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.errors import did_you_mean, must
from optcov.kernel import ReverseKernel
from optcov.parameterization import X0
from optcov.schedule import LinearSchedule, NoiseLevels
from optcov.seeds import Stream, derive_seed
from optcov.variance.likely import posterior_variance

SCHEDULE = LinearSchedule(1000)
TIMES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
STEPS = (8, 16, 32, 64, 128)  # of paths; each divides the last
FIRST, LAST = 0.01, 1.0  # times between which a path runs
IMAGES = 4000  # to fit to
PLANTED = 0.3


@dataclass(frozen=True)
class Task:
    """A task by name and version.

    Args:
        name, version: such as ``digits_mixture`` and ``v1``.
        truth: makes the distribution of the data.
        planted: the size of the mean's error, in posterior standard deviations of white data of variance 1/4.
    """

    name: str
    version: str
    truth: Callable[[], Truth]
    planted: float = 0.0

    @property
    def label(self) -> str:
        """Such as ``digits_mixture/v1/planted``."""
        return f"{self.name}/{self.version}" + ("/planted" if self.planted else "")


TASKS = {
    task.label: task
    for planted in (0.0, PLANTED)
    for task in (
        Task("gaussian_field", "v1", gaussian_field, planted),
        Task("digits_mixture", "v1", digits_mixture, planted),
        Task("finite_digits", "v1", finite_digits, planted),
        Task("cifar_patches", "v1", cifar_patches, planted),
    )
}


def task_of(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigError: if there is none; the message has the nearest names.
    """
    if name not in TASKS:
        raise must("task", "a task of covbench", name, did_you_mean(name, TASKS))
    return TASKS[name]


class TruthNetwork(nn.Module):
    """The exact mean of a truth, with a planted error, as a network that predicts x_0; heads read ``(x_t, output)``.

    Args:
        truth: the distribution of the data.
        planted: as in `Task`.
    """

    data_shape, feature_channels, default_head = SHAPE, 2, "input"

    def __init__(self, truth: Truth, planted: float) -> None:
        super().__init__()
        self.truth, self.planted = truth, planted

    def forward(self, x_t: Tensor, network_time: Tensor) -> tuple[Tensor, Tensor]:
        level = SCHEDULE.levels(network_time.double() / 1000)
        x = x_t.double().flatten(1)
        mean = self.truth.posterior_mean(x, level.alpha, level.sigma)
        output = (mean.reshape(x_t.shape) + self.error(x_t, level)).to(x_t.dtype)
        return output, torch.cat([x_t, output], 1)

    def error(self, x_t: Tensor, level: NoiseLevels) -> Tensor:
        """delta, what was planted: ``0.3 sqrt(c_0) sin(3 x_t)`` with x_t shifted by a pixel."""
        size = self.planted * posterior_variance(0.25, level).sqrt().reshape(-1, 1, 1, 1)
        return size * torch.sin(3 * x_t.double().roll(1, 3))


@dataclass(frozen=True)
class Node:
    """Points at one level, and what is true there.

    Args:
        level: 0-dimensional.
        x_t: ``[n, *SHAPE]``.
        covariance: ``Cov[x_0|x_t]``, ``[n, d, d]``.
        error: delta of the network's mean, ``[n, d]``.
    """

    level: NoiseLevels
    x_t: Tensor
    covariance: Tensor
    error: Tensor

    @property
    def about_the_mean(self) -> Tensor:
        """``C + delta delta^T``: what a covariance of x_0 about the network's mean should be."""
        return self.covariance + self.error[:, :, None] * self.error[:, None]


class Bench:
    """A task made: its denoiser, images to fit to, and the points at which estimators are scored.

    Args:
        task: the task.
        points: number of points at each of `TIMES`.
        path_points: number of paths for `path`.
        seed: of images, points and paths.
    Attributes:
        images: float32 ``[IMAGES, *SHAPE]``.
        x_0: the data behind the points, ``[points, *SHAPE]``, float64.
    """

    def __init__(self, task: Task, points: int, path_points: int, seed: int = 0) -> None:
        self.truth, self.seed, self.path_points = task.truth(), seed, path_points
        self.network = TruthNetwork(self.truth, task.planted)
        self.denoiser = Denoiser(self.network, SCHEDULE, X0(), data_range=DataRange(None, None)).eval()
        self.images = self._drawn(IMAGES, self._generator(0)).float()
        self.x_0 = self._drawn(points, self._generator(1))

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, Stream.SAMPLES, purpose))

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        return self.truth.sample(count, generator).reshape(-1, *SHAPE)

    def node(self, level: NoiseLevels, x_t: Tensor) -> Node:
        """What is true at points."""
        covariance = self.truth.posterior(x_t.flatten(1), level.alpha, level.sigma)[1]
        return Node(level, x_t, covariance, self.network.error(x_t, level).flatten(1))

    def predicted(self, node: Node) -> Prediction:
        """The network's prediction at a node."""
        prediction: Prediction = self.denoiser(node.x_t, node.level)
        return prediction

    @cached_property
    def nodes(self) -> dict[float, Node]:
        """The points at each of `TIMES`; those of all times have the same data and noise."""
        eps, found = _noise(self.x_0, self._generator(2)), {}
        for t in TIMES:
            level = self.denoiser.levels(torch.tensor(t, dtype=torch.float64))
            found[t] = self.node(level, self.denoiser.diffuse(self.x_0, eps, level))
        return found

    @cached_property
    def path(self) -> list[Node]:
        """The chains on which estimators are scored, at ``STEPS[-1] + 1`` levels."""
        return [self.node(level, x_t) for level, x_t in self.chains(self.path_points, STEPS[-1])]

    def chains(self, count: int, steps: int, chunk: int = 0) -> list[tuple[NoiseLevels, Tensor]]:
        """Chains of the data forward in time: levels even in log SNR, and x_t, ``[count, *SHAPE]``.

        Args:
            count: number of chains.
            steps: of each.
            chunk: each has chains of its own.
        """
        generator = self._generator(3 + chunk)
        low, high = SCHEDULE.log_snr(torch.tensor([FIRST, LAST], dtype=torch.float64)).tolist()
        levels = SCHEDULE.levels(SCHEDULE.time(torch.linspace(low, high, steps + 1, dtype=torch.float64)))
        x_0 = self._drawn(count, generator)
        x_t = self.denoiser.diffuse(x_0, _noise(x_0, generator), levels[0])
        found = [(levels[0], x_t)]
        for i in range(steps):
            kernel = ReverseKernel.from_levels(levels[i], levels[i + 1])
            x_t = levels[i + 1].alpha / levels[i].alpha * x_t + kernel.beta.sqrt() * _noise(x_t, generator)
            found.append((levels[i + 1], x_t))
        return found


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator)
