"""The trajectory with the lowest measured bound, for any strategy.  Source: Watson et al. (arXiv:2106.03802), Sec. 3.

Every transition between candidate times, and every decoder, is measured on a few training images; dynamic programming
then finds the path with the lowest total.  All transitions that start at the same time share images, noise and a single
network call, so their differences are more accurate than their standard errors suggest.  They are means of divergences
and need no correction.  The smallest of many noisy sums looks better than it is, so measure bits/dim on other images,
as metric=nll does.
"""

from __future__ import annotations

import torch
from tqdm.auto import tqdm

from optcov.denoiser import Denoiser
from optcov.likelihood.variational import VariationalBound
from optcov.ranges import PositiveCount
from optcov.sampler.noise import NoiseStream
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.candidates import CandidateTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.base import Clean, VarianceStrategy


class OptimalNLLTrajectory(CandidateTrajectory):
    """The path to N with the lowest bound through evenly spaced candidate times.

    Args:
        num_images: how many images the terms are measured on, at least 1.
        num_candidates: how many times to choose from, at least 2, including both ends; the cost grows with its square.
            None for all N.
        clip_x0: as in `optcov.likelihood.VariationalBound`.
    Raises:
        ValueError: if there are fewer than two candidates, or no images.
    """

    option = "optimal_nll"

    def __init__(
        self, num_images: PositiveCount = 128, num_candidates: PositiveCount | None = 100, clip_x0: bool = True
    ) -> None:
        if num_images < 1:
            raise ValueError(
                f"trajectory.num_images must be at least 1 (got {num_images}): give how many images to measure on"
            )
        super().__init__(num_candidates)
        self.num_images, self.clip_x0 = num_images, clip_x0

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        super().check(schedule, num_steps)
        if self.num_candidates is not None and num_steps > self.num_candidates:
            raise ValueError(
                f"trajectory.num_candidates must be at least sampler.num_steps = {num_steps} (got "
                f"{self.num_candidates}): give more candidates, or null for all times"
            )

    @torch.no_grad()
    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, clean: Clean) -> None:
        total = denoiser.schedule.num_steps
        self._candidates = EvenTrajectory().nodes(total, min(total, self.num_candidates or total))
        times = self._candidates.double() / total
        cost = torch.zeros(len(times) + 1, len(times) + 1, dtype=torch.float64)
        count = 0
        bound = VariationalBound(denoiser, strategy, self.clip_x0)
        for x_0 in clean.batches:
            indices = range(count, count + len(x_0))
            noise = NoiseStream(clean.seed, indices, x_0.shape[1:], x_0.device, x_0.dtype)
            condition = None if clean.labels is None else clean.labels[indices.start : indices.stop]
            levels = denoiser.levels(times).to(x_0.device)
            count += len(x_0)
            for i in tqdm(range(len(times)), desc="trajectory: terms of the bound", leave=False):
                noised = bound.observe(x_0, levels[i], noise, condition)
                terms = [bound.decoder(noised), *(bound.transition(noised, levels[j]) for j in range(i))]
                cost[i + 1, : i + 1] += torch.stack(terms).sum(1).cpu()
        self._paths = ShortestPaths(cost / count)
