"""Times placed by their noise level, which may fall between the grid times of a discrete schedule.

A network trained on discrete times is then called at the time that the interpolated schedule assigns to the noise
level, as in DPM-Solver (arXiv:2206.00927, Sec. 3.4).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from optcov.ranges import Share
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.base import Trajectory


class NoiseLevelTrajectory(Trajectory):
    """K times between two ends, placed by their log-SNR.

    Args:
        t_max: the last time, in (0, 1]; a value below 1 keeps solvers away from the end of the cosine schedule (0.9946
            in DPM-Solver).
        t_min: the first time, positive and below ``t_max``; None for the schedule's first time, 1/N.
    Raises:
        ValueError: if the ends are not in this order.
    """

    def __init__(self, t_max: Share = 1.0, t_min: Share | None = None) -> None:
        if not 0 < t_max <= 1:
            raise ValueError(f"trajectory.t_max must be above 0 and at most 1 (got {t_max}): give 1, or a little less")
        if t_min is not None and not 0 < t_min < t_max:
            raise ValueError(
                f"trajectory.t_min must lie between 0 and trajectory.t_max = {t_max} (got {t_min}): give null for 1/N"
            )
        self.t_max, self.t_min = t_max, t_min

    @abstractmethod
    def log_snr_at(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        """Log SNR at fractions ``share`` in [0, 1] of the way from ``first`` (at t_min) to ``last`` (at t_max)."""

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        self.times(schedule, num_steps)  # continuous times: K may exceed N

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        t_min = 1 / schedule.num_steps if self.t_min is None else self.t_min
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps must be at least 1 (got {num_steps}): give the number of times")
        if num_steps > 1 and t_min >= self.t_max:
            raise ValueError(
                f"trajectory.t_max must be above t_min = {t_min:.3g} for sampler.num_steps = {num_steps} (got "
                f"{self.t_max}): set a smaller trajectory.t_min, a larger t_max, or one step"
            )
        if num_steps == 1:
            return torch.tensor([self.t_max], dtype=torch.float64)
        first, last = schedule.log_snr(torch.tensor([t_min, self.t_max], dtype=torch.float64))
        if not bool(last.isfinite()):
            raise ValueError(
                f"trajectory.t_max must leave some signal at the last time (got {self.t_max}, where "
                f"{type(schedule).__name__} has none): set trajectory.t_max=0.999, or trajectory=even"
            )
        times = schedule.time(self.log_snr_at(first, last, torch.linspace(0, 1, num_steps, dtype=torch.float64)))
        times[0], times[-1] = t_min, self.t_max  # exact, without rounding
        return times


class LogSNRTrajectory(NoiseLevelTrajectory):
    """Spaces ``log(alpha_t^2 / sigma_t^2)`` evenly, as DPM-Solver does; the arguments are those of the base class."""

    def log_snr_at(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        return first + share * (last - first)
