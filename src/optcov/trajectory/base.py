"""The times ``0 < tau_1 < ... < tau_K <= 1`` that a sampler visits: one network call at each, the last step to 0."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.schedule.base import NoiseSchedule
from optcov.variance.base import Clean, VarianceStrategy

log = logging.getLogger(__name__)


class Trajectory(ABC):
    """Chooses K times.

    Attributes:
        num_images: how many images `fit` needs; 0 if the trajectory is a formula and needs no fit.
    """

    num_images: int = 0

    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, clean: Clean) -> None:
        """Measure what the times depend on, using a fitted model; the default does nothing.

        Args:
            denoiser, strategy: in eval mode, on the device of the data.
            clean: `num_images` data, or fewer if there are fewer.
        """
        return

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        """Check the number of steps before anything is fitted.

        Raises:
            ValueError: if K is not in 1..N.
        """
        if not 1 <= num_steps <= schedule.num_steps:
            raise ValueError(
                f"sampler.num_steps must lie in 1..schedule.num_steps = {schedule.num_steps} (got {num_steps}): "
                "give fewer steps, or trajectory=log_snr, whose times may lie between those of the schedule"
            )

    @abstractmethod
    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, ascending, float64 ``[K]`` in (0, 1]; trajectories that need a fit require `fit` first.

        Args:
            schedule: the schedule, with N steps.
            num_steps: K.
        Raises:
            ValueError: if this K is not possible.
        """


class GridTrajectory(Trajectory):
    """Chooses K times on the grid ``n / N``."""

    @abstractmethod
    def nodes(self, total: int, num_steps: int) -> Tensor:
        """Ascending integers in 1..N, possibly repeated, by the published formula.

        Args:
            total: N, the steps of the schedule.
            num_steps: K.
        """

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return K times; log a warning if the formula gives another number of them."""
        self.check(schedule, num_steps)
        nodes = torch.unique(self.nodes(schedule.num_steps, num_steps))
        if len(nodes) != num_steps:
            log.warning("%s gives %d times for num_steps = %d", type(self).__name__, len(nodes), num_steps)
        return nodes.to(torch.float64) / schedule.num_steps  # type: ignore[no-any-return]
