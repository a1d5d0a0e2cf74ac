"""Times that the user lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.ranges import PositiveCount, Share
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.base import Trajectory


class ListTrajectory(Trajectory):
    """A list of times, or of steps n of N; give exactly one of the two.

    Args:
        times: ascending times in (0, 1].
        nodes: ascending integers in 1..N; diffusers' schedulers call step n timestep n - 1.
    Raises:
        ValueError: if both are given, or they do not ascend within their range.
    """

    def __init__(self, times: Sequence[Share] | None = None, nodes: Sequence[PositiveCount] | None = None) -> None:
        if times is not None and nodes is not None:
            raise ValueError("trajectory.times and trajectory.nodes are both given: give one of them")
        given = nodes if times is None else times
        self._name = "trajectory.times" if nodes is None else "trajectory.nodes"
        self._in_steps = nodes is not None
        self._given = torch.as_tensor([] if given is None else list(given), dtype=torch.float64)
        if given is not None and not self._ascends():
            what = "integers that rise from 1" if self._in_steps else "times that rise from above 0 to at most 1"
            example = "[1,500,1000]" if self._in_steps else "[0.001,0.5,1]"
            raise ValueError(f"{self._name} must be {what} (got {list(given)}): give a list such as {example}")

    def _ascends(self) -> bool:
        """Whether the list is not empty, ascends from above 0, and stays within its range."""
        rises = (self._given.diff(prepend=self._given.new_zeros(1)) > 0).all()
        fits = self._given == self._given.round() if self._in_steps else self._given <= 1
        return len(self._given) > 0 and bool(rises & fits.all())

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        if len(self._given) == 0:
            raise ValueError(
                "trajectory.times must be given for trajectory=list (got none): give "
                "'trajectory.times=[0.1,0.5,1]', or set another trajectory"
            )
        if num_steps != len(self._given):
            raise ValueError(
                f"sampler.num_steps must be {len(self._given)}, the length of {self._name} (got {num_steps}): give "
                f"sampler.num_steps={len(self._given)}"
            )
        if self._in_steps and self._given[-1] > schedule.num_steps:
            raise ValueError(
                f"trajectory.nodes must be at most schedule.num_steps = {schedule.num_steps} (got "
                f"{int(self._given[-1])}): give steps from 1 to N, or trajectory.times"
            )

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        self.check(schedule, num_steps)
        return self._given / schedule.num_steps if self._in_steps else self._given.clone()

    def __len__(self) -> int:
        """K."""
        return len(self._given)
