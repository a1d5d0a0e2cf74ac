"""Bits per dimension of the probability-flow ODE, with uniform dequantisation (see :mod:`optcov.flow`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.data.base import Split
from optcov.data.pixels import from_uint8
from optcov.denoiser import Denoiser
from optcov.flow import ProbabilityFlow
from optcov.likelihood import HALF_BIN
from optcov.metric.base import ModelMetric, Score
from optcov.metric.nll import device_of, mean_and_error
from optcov.sampler.noise import NoiseStream
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import VarianceStrategy


class FlowNLL(ModelMetric):
    """``E -log p(x + u)`` for u uniform over each pixel's bin: an upper bound on the bits of 8-bit data.

    It looks at the mean network alone: not at variance, sampler or trajectory.  The density is that of x at ``t_min``,
    where a little noise is left; it is a density all the same, so that the bound holds.

    Args:
        split, num_images: as in :class:`ModelMetric`.
        t_min, tolerance: as in :class:`optcov.flow.ProbabilityFlow`.
    Raises:
        ValueError: if ``t_min`` or ``tolerance`` is out of range.
    """

    def __init__(
        self,
        split: Split = "test",
        num_images: int | None = None,
        t_min: float | None = None,
        tolerance: float = 1e-5,
    ) -> None:
        super().__init__(split, num_images)
        if t_min is not None and not 0 < t_min < 1:
            raise ValueError(f"t_min = {t_min} is no time after 0 and before 1: give one, or null for 1/N")
        if tolerance <= 0:
            raise ValueError(f"tolerance = {tolerance} is no error of a step: give a number above 0")
        self.t_min, self.tolerance = t_min, tolerance

    def measure(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        levels: Tensor,
        seed: int = 0,
        batch_size: int = 256,
        labels: Tensor | None = None,
    ) -> Score:
        device = device_of(denoiser)
        solutions = []
        with tqdm(desc="bits/dim (ODE)", leave=False, unit="call") as progress:
            for i, x_0 in enumerate(torch.split(from_uint8(levels), batch_size)):
                indices = range(i * batch_size, i * batch_size + len(x_0))
                given = denoiser if labels is None else denoiser.given(labels[indices.start : indices.stop].to(device))
                flow = ProbabilityFlow(given, self.t_min, self.tolerance)
                noise = NoiseStream(derive_seed(seed, Stream.FLOW_NLL), indices, denoiser.data_shape, device)
                uniform = 2 * torch.special.ndtr(noise.draw()) - 1
                probe = noise.draw().sign()
                solutions.append(flow.solve(x_0.to(device) + HALF_BIN * uniform, probe, progress.update))
        nats = -torch.cat([solution.log_density for solution in solutions]).cpu()
        bits = nats / (levels[0].numel() * math.log(2)) - math.log2(2 * HALF_BIN)
        value, error = mean_and_error(bits)
        details = {
            "unit": "bits/dim",
            "total": {"value": value, "standard_error": error},
            "network_calls": [solution.calls for solution in solutions],
            "tolerance": self.tolerance,
        }
        return Score(value, error, details)
