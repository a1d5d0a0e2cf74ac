"""The trajectory of the least measured bound, for any strategy.  Source: Watson et al. (arXiv:2106.03802), Sec. 3.

Every transition between candidate times and every decoder is measured on a few training images, and the path of least
total is found by dynamic programming.  All transitions that start at one time share its images, its noise and its one
network call, so that they differ by less than their standard errors; as means of divergences they need no mending.
The least of many noisy sums looks better than it is: bits/dim are to be measured on other images, as metric=nll does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.bound import VariationalBound
from optcov.denoiser import Denoiser
from optcov.sampler.noise import NoiseStream
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.base import GridTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.base import VarianceStrategy


class OptimalNLLTrajectory(GridTrajectory):
    """The path to N of least bound through evenly spaced candidates.

    Args:
        num_images: the terms are measured on.
        num_candidates: times to choose from, both ends among them; their pairs are what it costs; None for all N.
        clip_x0: as in :class:`optcov.bound.VariationalBound`.
    Raises:
        ValueError: if there are fewer than two candidates, or no images.
    """

    def __init__(self, num_images: int = 128, num_candidates: int | None = 100, clip_x0: bool = True) -> None:
        if num_images < 1:
            raise ValueError(f"trajectory.num_images = {num_images} measures nothing: give at least 1")
        if num_candidates is not None and num_candidates < 2:
            raise ValueError(f"trajectory.num_candidates = {num_candidates} leaves no choice: give at least 2, or null")
        self.num_images, self.num_candidates, self.clip_x0 = num_images, num_candidates, clip_x0
        self._candidates = torch.empty(0, dtype=torch.long)
        self._paths: ShortestPaths | None = None

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        super().check(schedule, num_steps)
        if self.num_candidates is not None and num_steps > self.num_candidates:
            raise ValueError(
                f"trajectory.num_candidates = {self.num_candidates} is less than sampler.num_steps = {num_steps}: "
                "give more candidates, or null for all times"
            )

    @torch.no_grad()
    def fit(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        batches: Iterable[Tensor],
        seed: int = 0,
        labels: Tensor | None = None,
    ) -> None:
        total = denoiser.schedule.num_steps
        self._candidates = EvenTrajectory().nodes(total, min(total, self.num_candidates or total))
        times = self._candidates.double() / total
        cost = torch.zeros(len(times) + 1, len(times) + 1, dtype=torch.float64)
        count = 0
        for x_0 in batches:
            indices = range(count, count + len(x_0))
            noise = NoiseStream(seed, indices, x_0.shape[1:], x_0.device, x_0.dtype)
            given = denoiser if labels is None else denoiser.given(labels[indices.start : indices.stop])
            bound = VariationalBound(given, strategy, self.clip_x0)
            count += len(x_0)
            for i, t in enumerate(tqdm(times.to(x_0.device), desc="trajectory: terms of the bound", leave=False)):
                noised = bound.observe(x_0, t, noise)
                terms = [bound.decoder(noised), *(bound.transition(noised, s) for s in times[:i].to(x_0.device))]
                cost[i + 1, : i + 1] += torch.stack(terms).sum(1).cpu()
        self._paths = ShortestPaths(cost / count)

    def nodes(self, total: int, num_steps: int) -> Tensor:
        if self._paths is None:
            raise ValueError("trajectory = optimal_nll depends on measured terms: call its fit before its times")
        return self._candidates[torch.tensor(self._paths.nodes(num_steps)) - 1]
