"""Trajectories that choose among candidate times by the costs of the steps between them, which a fit measures."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optcov.trajectory.base import GridTrajectory
from optcov.trajectory.shortest import ShortestPaths


class CandidateTrajectory(GridTrajectory):
    """The path of the lowest cost through candidate times; a subclass implements `fit`, which sets both attributes.

    Args:
        num_candidates: how many times to choose from, at least 2; None for all N.
    Raises:
        ValueError: if there are fewer than two.
    Attributes:
        option: the name of the option of ``trajectory``, for messages.
    """

    option: ClassVar[str]

    def __init__(self, num_candidates: int | None) -> None:
        if num_candidates is not None and num_candidates < 2:
            raise ValueError(
                f"trajectory.num_candidates must be at least 2 (got {num_candidates}): give more, or null for all times"
            )
        self.num_candidates = num_candidates
        self._candidates = torch.empty(0, dtype=torch.long)
        self._paths: ShortestPaths | None = None

    def nodes(self, total: int, num_steps: int) -> Tensor:
        if self._paths is None:
            raise ValueError(f"trajectory={self.option} must be fitted before use: call its fit first")
        return self._candidates[torch.tensor(self._paths.nodes(num_steps)) - 1]
