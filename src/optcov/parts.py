"""The objects of a job: data, networks and everything that draws samples, independent of the command line."""

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
from optcov.variance.base import Calibrated, Clean, VarianceStrategy


@dataclass(frozen=True)
class Parts:
    """The objects that make up a run; ``trains_mean`` is false for a mean network that was given with its weights."""

    data: DataSource
    denoiser: Denoiser
    strategy: VarianceStrategy
    sampler: Sampler
    trajectory: Trajectory
    metrics: dict[str, Metric | ModelMetric]
    guidance: Guidance | None = None
    classes: int | list[int] | None = None  # classes to sample in turn; None for the proportions of the data
    trains_mean: bool = True

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the samples; None if nothing needs labels."""
        guided = self.guidance is not None and self.guidance.classifier is not None
        return self.data.num_classes if guided else self.denoiser.num_classes

    def labels(self, count: int, seed: int) -> Tensor | None:
        """The class of each of ``count`` samples, int64 ``[count]``; None if nothing needs labels."""
        if self.num_classes is None:
            return None
        if self.classes is not None:
            return cycle_labels(self.classes, self.num_classes, count)
        return draw_labels(self.data.labels("train").bincount(minlength=self.num_classes), count, seed)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that hold weights: the denoiser, the strategy and, if there is one, the guidance."""
        return [module for module in (self.denoiser, self.strategy, self.guidance) if module is not None]

    def calibration(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """``count`` training samples in the denoiser's range, and their labels if the denoiser is class-conditional."""
        clean = self.denoiser.data_range.from_unit(self.data.calibration(count).to(device))
        return clean, None if self.denoiser.num_classes is None else self.data.calibration_labels(count).to(device)

    @cached_property
    def times(self) -> Tensor:
        """The times of the trajectory; read them only after variance and trajectory have been fitted."""
        return self.trajectory.times(self.denoiser.schedule, self.sampler.num_steps)

    def calibrate(self, device: torch.device, seed: int) -> None:
        """Measure what a `Calibrated` strategy needs, on training samples."""
        assert isinstance(self.strategy, Calibrated)
        clean, labels = self.calibration(self.strategy.num_images, device)
        batches = torch.split(clean, self.data.batch_size)
        self.strategy.calibrate(self.denoiser.to(device).eval(), batches, seed, labels)

    def fit_trajectory(self, device: torch.device, seed: int, batch_size: int) -> None:
        """Fit a trajectory that depends on the model, and fix the times.  Takes seconds.

        Raises:
            ValueError: if the trajectory has no such times.
        """
        if self.trajectory.num_images:
            clean, labels = self.calibration(self.trajectory.num_images, device)
            denoiser, strategy = self.denoiser.to(device).eval(), self.strategy.to(device).eval()
            self.trajectory.fit(denoiser, strategy, Clean(torch.split(clean, batch_size), seed, labels))
        self.times  # noqa: B018 (computed once, and refused here)

    def fit_sampler(self, device: torch.device, seed: int) -> None:
        """Fit a sampler that depends on the model to the times.  Takes seconds.

        Raises:
            ValueError: if the sampler cannot be fitted to this model.
        """
        if self.sampler.num_images:
            clean, labels = self.calibration(self.sampler.num_images, device)
            denoiser, strategy = self.denoiser.to(device).eval(), self.strategy.to(device).eval()
            self.sampler.fit(denoiser, strategy, self.times, Clean([clean], seed, labels))
