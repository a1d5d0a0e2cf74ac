"""Bits per dimension of the probability-flow ODE, with uniform dequantisation (see `optcov.likelihood.ode`)."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.data.base import Split
from optcov.denoiser import Denoiser
from optcov.likelihood import ProbabilityFlow
from optcov.likelihood.ode import check_settings
from optcov.likelihood.terms import half_bin
from optcov.metric.base import Batch, ModelMetric
from optcov.ranges import BelowOne, Positive, PositiveCount
from optcov.seeds import Stream
from optcov.variance.base import VarianceStrategy


class FlowNLL(ModelMetric):
    """``E -log p(x + u)`` for u uniform over each pixel's bin, an upper bound on the bits/dim of 8-bit data.

    It depends only on the mean network, not on variance, sampler or trajectory.  The density is that of x at ``t_min``,
    where a little noise is left; the bound holds because it is still a density.

    Args:
        split, num_images: as in `ModelMetric`.
        t_min, tolerance: as in `optcov.likelihood.ProbabilityFlow`.
    Raises:
        ValueError: if ``t_min`` or ``tolerance`` is out of range.
    """

    stream = Stream.FLOW_NLL

    def __init__(
        self,
        split: Split = "test",
        num_images: PositiveCount | None = None,
        t_min: BelowOne | None = None,
        tolerance: Positive = 1e-5,
    ) -> None:
        super().__init__(split, num_images)
        check_settings(t_min, tolerance)
        self.t_min, self.tolerance = t_min, tolerance

    def nats(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, batch: Batch) -> Tensor:
        half = half_bin(denoiser.data_range, batch.x_0)
        uniform = 2 * torch.special.ndtr(batch.noise.draw()) - 1
        probe = batch.noise.draw().sign()
        flow = ProbabilityFlow(denoiser, self.t_min, self.tolerance)
        solution = flow.solve(batch.x_0 + half * uniform, probe, batch.advance, batch.condition)
        volume = torch.as_tensor(2 * half, dtype=torch.float64).log().expand(batch.x_0.shape[1:]).sum()
        return -(solution.log_density[None] + volume.to(solution.log_density.device))
