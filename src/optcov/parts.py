"""What a job is made of: data, networks and the way samples are drawn, without a command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.guidance import Guidance
from optcov.labels import cycle_labels, draw_labels
from optcov.metric import Metric, ModelMetric
from optcov.sampler import Sampler
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Parts:
    """What a run is made of; ``trains_mean`` is false where the mean network was given with its weights."""

    data: DataSource
    denoiser: Denoiser
    strategy: VarianceStrategy
    sampler: Sampler
    trajectory: Trajectory
    metrics: dict[str, Metric | ModelMetric]
    guidance: Guidance | None = None
    classes: int | list[int] | None = None  # wanted, in turn; None for as often as in the data
    trains_mean: bool = True

    @property
    def num_classes(self) -> int | None:
        """Of samples; None where nothing asks for labels."""
        guided = self.guidance is not None and self.guidance.classifier is not None
        return self.data.num_classes if guided else self.denoiser.num_classes

    def labels(self, count: int, seed: int) -> Tensor | None:
        """The class of each of ``count`` samples, int64; None where nothing asks for labels."""
        if self.num_classes is None:
            return None
        if self.classes is not None:
            return cycle_labels(self.classes, self.num_classes, count)
        return draw_labels(self.data.labels("train").bincount(minlength=self.num_classes), count, seed)

    @property
    def modules(self) -> list[nn.Module]:
        """What holds weights: the denoiser, the strategy, and the guidance if there is any."""
        return [module for module in (self.denoiser, self.strategy, self.guidance) if module is not None]

    def calibration(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """``count`` training samples in the denoiser's range, and their labels where the mean network knows classes."""
        clean = self.denoiser.data_range.from_unit(self.data.calibration(count).to(device))
        return clean, None if self.denoiser.num_classes is None else self.data.calibration_labels(count).to(device)

    @cached_property
    def times(self) -> Tensor:
        """The times of the trajectory; to be asked for once variance and trajectory are fitted."""
        return self.trajectory.times(self.denoiser.schedule, self.sampler.num_steps)
