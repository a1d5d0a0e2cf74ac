r"""The times at which DDIM's steps err least against a fine chain of the same network.

A fine chain visits all candidate times.  From each of them DDIM's step, or Euler's, leads to every later one without
another call, and the cost of the step is how far it ends from the fine chain,

    cost(t, s) = E |x_s - x_s^fine| / sqrt(alpha_s^2 v + sigma_s^2),        v the variance of the fine chain's answers

in units of the marginal's standard deviation, which the ODE of Gaussian data conserves.  Dynamic programming finds the
K times of the least total.

Source: GITS (arXiv:2405.11326), Sec. 4, whose errors are in EDM's coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.denoiser import Denoiser, Prediction
from optcov.ranges import PositiveCount
from optcov.sampler.noise import NoiseStream
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import per_sample
from optcov.trajectory.candidates import CandidateTrajectory
from optcov.trajectory.power import PowerTrajectory
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.base import Clean, VarianceStrategy


class LearnedTrajectory(CandidateTrajectory):
    """Times learned from chains; they suit first-order and multistep solvers of the ODE, whatever ``var`` is.

    Args:
        num_images: chains, at least 2, of which the classes of as many images are drawn.
        num_candidates: times of the fine chain, dense near the data, at least 2; None for all N.
    Raises:
        ValueError: if there are fewer.
    """

    option = "learned"

    def __init__(self, num_images: PositiveCount = 64, num_candidates: PositiveCount | None = 64) -> None:
        if num_images < 2:
            raise ValueError(f"trajectory.num_images must be at least 2 (got {num_images}): give such as 64")
        super().__init__(num_candidates)
        self.num_images = num_images

    def check(self, schedule: NoiseSchedule, num_steps: int) -> None:
        super().check(schedule, num_steps)
        count = len(self._grid(schedule.num_steps))
        if num_steps > count:
            raise ValueError(
                f"sampler.num_steps must be at most the {count} candidates of trajectory=learned (got {num_steps}): "
                "give a larger trajectory.num_candidates, or null"
            )

    @torch.no_grad()
    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, clean: Clean) -> None:
        self._candidates = self._grid(denoiser.schedule.num_steps)
        times = self._candidates.double() / denoiser.schedule.num_steps
        count, device = sum(len(batch) for batch in clean.batches), clean.batches[0].device
        levels = denoiser.levels(torch.cat([times.new_zeros(1), times])).to(device)
        x = NoiseStream(clean.seed, range(count), denoiser.data_shape, device).draw()
        x = per_sample(denoiser.schedule.prior_std(levels[-1]), x) * x
        fine: list[Tensor] = [x]
        predictions: list[Prediction] = []
        for t in range(len(times), 0, -1):
            predictions.append(denoiser(fine[-1], levels[t], clean.labels))
            fine.append(denoiser.diffuse(predictions[-1].x0, predictions[-1].eps, levels[t - 1]))
        fine.reverse()  # by candidate, 0 being the data
        predictions.reverse()
        spread = (levels.alpha**2 * fine[0].double().var(0).mean() + levels.sigma**2).sqrt()
        cost = torch.zeros(len(fine), len(fine), dtype=torch.float64, device=device)
        for t in range(1, len(fine)):
            for s in range(t):
                off = denoiser.diffuse(predictions[t - 1].x0, predictions[t - 1].eps, levels[s]) - fine[s]
                cost[t, s] = off.double().flatten(1).norm(dim=1).mean() / spread[s]
        self._paths = ShortestPaths(cost.cpu())

    def _grid(self, total: int) -> Tensor:
        if self.num_candidates is None:
            return torch.arange(1, total + 1)
        candidates: Tensor = torch.unique(PowerTrajectory(2.0).nodes(total, min(total, self.num_candidates)))
        return candidates
