"""The fifth verb, `restore`: draws samples from the posterior of an image given a linear measurement of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optcov.data.pixels import from_uint8, to_uint8
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, device_of
from optcov.files import write_atomically
from optcov.guidance.measurement import MeasurementGuidance, OperatorFactory
from optcov.inverse import ForwardModel, Operator
from optcov.registry import resolve, settings_of
from optcov.report.picture import picture, tile
from optcov.sampler import NoiseStream, Sampler, State, batches
from optcov.sampler.base import drawn_in_batches
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy
from optcov.verbs import fitted, times_of

__all__ = ["Restoration", "restore", "write_restored"]

MOST_ROWS = 16  # of a picture of files


@dataclass(frozen=True)
class Restoration:
    """Samples from a posterior, with their mean, standard deviation and picture.

    Args:
        samples: ``[count, *event]``, or ``[n, count, *event]`` for n measurements; float32, on the CPU.
        event_ndim: the number of axes of an event.
        operator: A, which made the measurement.
        y: the measurements, ``[1 or n, *measurement]``.
        data_range: the range of the samples.
    """

    samples: Tensor
    event_ndim: int
    operator: ForwardModel
    y: Tensor
    data_range: DataRange

    @property
    def mean(self) -> Tensor:
        """The mean of the samples, ``[*event]`` or ``[n, *event]``: the estimate with the least squared error."""
        return self.samples.mean(-self.event_ndim - 1)

    @property
    def std(self) -> Tensor:
        """The standard deviation of the samples, with the shape of `mean`; it needs at least two samples."""
        return self.samples.std(-self.event_ndim - 1)

    def picture(self, path: str | Path, truth: Tensor | None = None, count: int = 4) -> None:
        """Draw a PNG with a row for each measurement: truth, measurement, mean, standard deviation and samples.

        A measurement is shown as ``A^T y / A^T A 1``, black where nothing is measured; one by a non-linear function is
        shown as it is if it has the shape of an image, else it is left black.

        Args:
            path: the PNG to write.
            truth: images ``[*event]`` or ``[n, *event]``; None to leave them out.
            count: number of samples in a row.
        Raises:
            ValueError: if the data are not images of 1 or 3 channels.
        """
        shape = self.samples.shape[-self.event_ndim :]
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"data must be images of 1 or 3 channels for a picture (got shape {tuple(shape)})")
        samples = self.samples.reshape(len(self.y), -1, *shape)
        y = self.y.to(samples)
        std = samples.std(1) / samples.std(1).amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        deviation = self.data_range.from_unit(2 * std - 1)
        columns = [self._shown(y), samples.mean(1), deviation, *samples[:, :count].unbind(1)]
        if truth is not None:
            columns = [truth.reshape(-1, *shape).to(samples), *columns]
        levels = [to_uint8(self.data_range.to_unit(column)) for column in columns]
        tile(torch.stack(levels, 1), line=True).save(path)

    def _shown(self, y: Tensor) -> Tensor:
        """Measurements ``[n, *measurement]`` as images."""
        operator, ones = self.operator, y.new_ones(len(y), *self.operator.event_shape)
        black = self._unit(-1.0, ones[:, None])
        if not isinstance(operator, Operator):
            return y if y.shape[1:] == operator.event_shape else black
        seen = operator.adjoint(operator(ones))
        return torch.where(seen.abs() > 1e-6, operator.adjoint(y) / seen, black)

    def _unit(self, level: float, like: Tensor) -> Tensor:
        """Map a level on [-1, 1] to the range of the data, in the shape of images."""
        return self.data_range.from_unit(torch.full_like(like[:, 0], level))


def write_restored(
    samples: Iterable[Tensor], guidance: MeasurementGuidance, data_range: DataRange, folder: Path
) -> None:
    """Write the results for each measurement of a guidance, named after it.

    ``restored/NAME.png`` is the mean of its samples, ``restored.png`` has a row for each of the first measurements (see
    `Restoration.picture`), and ``measurements.csv`` says to which measurement a sample belongs.

    Args:
        samples: uint8 ``[b, C, H, W]`` with 1 or 3 channels, in order.
        guidance: with names.
        data_range: the range of the network's data.
        folder: where to write.
    """
    (folder / "restored").mkdir(exist_ok=True)
    stems = [Path(name).stem for name in guidance.names]
    names = stems if len(set(stems)) == len(stems) else guidance.names
    first: list[Tensor] = []
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["sample", "measurement"])
    for i, group in enumerate(_grouped(samples, guidance.count)):
        unit = from_uint8(group)
        picture(to_uint8(unit.mean(0, keepdim=True)), folder / "restored" / f"{names[i]}.png", scale=1)
        rows.writerows([i * len(group) + j, guidance.names[i]] for j in range(len(group)))
        if i < MOST_ROWS:
            first.append(data_range.from_unit(unit))
    shown = Restoration(torch.stack(first), 3, guidance.operator.cpu(), guidance.y[: len(first)].cpu(), data_range)
    shown.picture(folder / "restored.png")
    write_atomically(folder / "measurements.csv", table.getvalue())


def _grouped(samples: Iterable[Tensor], count: int | None) -> Iterator[Tensor]:
    """Yield ``count`` samples at a time; None for all of them."""
    left: list[Tensor] = []
    for chunk in samples:
        left.append(chunk)
        while count is not None and sum(map(len, left)) >= count:
            joined = torch.cat(left)
            yield joined[:count]
            left = [joined[count:]]
    if count is None:
        yield torch.cat(left)


def restore(
    denoiser: Denoiser,
    strategy: VarianceStrategy | str,
    y: Tensor,
    operator: ForwardModel | OperatorFactory,
    noise: float | Tensor = 0.05,
    count: int = 16,
    num_steps: int = 25,
    sampler: str | Sampler = "ddpm",
    trajectory: str | Trajectory | Iterable[float] = "quadratic",
    estimate: str = "sample",
    seed: int = 0,
    *,
    solver_steps: int = 50,
    batch_size: int = 256,
    progress: bool = True,
    **settings: Any,
) -> Restoration:
    """Draw images from which a measurement may have come.

    Args:
        denoiser: from `optcov.load`.
        strategy: from `optcov.fit`; one that models correlations, such as ``low_rank``, infers pixels that a mask hides
            from those that it shows.
        y: a measurement ``A x_0 + noise``, ``[*measurement]``, or several, ``[n, *measurement]``, in the unit of the
            network's data; for a `Mask`, images are accepted too, and their hidden pixels ignored.
        operator: A, from `optcov.inverse`.
        noise: standard deviation of the noise in y, in the same unit; positive, one number or one for each value of y.
        count: number of samples for each measurement.
        num_steps, sampler, trajectory: as in `optcov.sample`; the sampler's last stochastic step is not cut.
        estimate: ``sample`` for samples from the posterior; ``mean`` for reconstructions, to which the last step adds
            no noise.
        seed: sample i depends only on (seed, i); those of measurement j begin at i = j * count.
        solver_steps: as in `MeasurementGuidance`.
        batch_size: largest number of samples drawn at once.
        progress: whether to show a progress bar.
        settings: settings of the sampler, such as ``eta=0.5`` for ``ddim``.
    Returns:
        The samples, with their mean and standard deviation.
    Raises:
        ValueError: if a value is invalid; the message is one sentence.
    """
    strategy, device = fitted(strategy, denoiser), device_of(denoiser)
    if isinstance(sampler, str):
        own = {"cut": None} if "cut" in settings_of("sampler", sampler) else {}
        settings = {"num_steps": num_steps} | own | settings
    sampler = resolve("sampler", sampler, **settings)
    assert isinstance(sampler, Sampler)
    sampler.check(strategy, denoiser.schedule)
    operator = operator if isinstance(operator, ForwardModel) else operator(denoiser.data_shape)
    y = torch.as_tensor(y)
    given = operator.accept(y)
    times = times_of(denoiser, strategy, trajectory, sampler.num_steps, seed, None)

    guidance = MeasurementGuidance(
        denoiser, operator=operator, y=given, noise=noise, estimate=estimate, solver_steps=solver_steps, count=count
    ).to(device)
    guidance.check(strategy)
    total = len(given) * count

    def chain(indices: range) -> Iterator[State]:
        stream = NoiseStream(seed, indices, denoiser.data_shape, device)
        return sampler.steps(denoiser, strategy, times, stream, guidance=guidance.of(indices))

    updates = sampler.num_updates(denoiser.schedule, times)
    samples = drawn_in_batches(chain, batches(total, batch_size), updates, (total, *denoiser.data_shape), progress)
    several = () if y.shape in (operator.measurement_shape, operator.event_shape) else (len(given),)
    samples = samples.reshape(*several, count, *denoiser.data_shape)
    return Restoration(samples, len(denoiser.data_shape), operator, given.cpu(), denoiser.data_range)
