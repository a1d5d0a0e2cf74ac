"""Which times a sampler visits: ``0 < tau_1 < ... < tau_K <= 1``, one network call at each, the last step to 0."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optcov.schedule.base import NoiseSchedule

log = logging.getLogger(__name__)


class Trajectory(ABC):
    """A choice of K times."""

    @abstractmethod
    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Ascending float64 times in (0, 1], ``[K]``.

        Args:
            schedule: with N steps.
            num_steps: K.
        Raises:
            ValueError: if K does not fit.
        """


class GridTrajectory(Trajectory):
    """A choice of K times on the grid ``n / N``."""

    @abstractmethod
    def nodes(self, total: int, num_steps: int) -> Tensor:
        """The published formula: integers in 1..N, ascending, possibly repeated; ``N = total``, ``K = num_steps``."""

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Ascending float64 times in (0, 1].

        Args:
            schedule: with N steps.
            num_steps: K in 1..N; the length of the result, unless the formula gives another number (then it is logged).
        Raises:
            ValueError: if K is not in 1..N.
        """
        if not 1 <= num_steps <= schedule.num_steps:
            raise ValueError(
                f"sampler.num_steps = {num_steps} does not fit a schedule of {schedule.num_steps} steps: "
                f"give a number from 1 to {schedule.num_steps}"
            )
        nodes = torch.unique(self.nodes(schedule.num_steps, num_steps))
        if len(nodes) != num_steps:
            log.warning("%s gives %d times for num_steps = %d", type(self).__name__, len(nodes), num_steps)
        return nodes.to(torch.float64) / schedule.num_steps  # type: ignore[no-any-return]
