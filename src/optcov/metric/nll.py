"""Bits per dimension by the variational bound, term by term (see :mod:`optcov.bound`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.bound import VariationalBound
from optcov.data.base import Split
from optcov.data.pixels import from_uint8
from optcov.denoiser import Denoiser
from optcov.likelihood import LogMass, pixel_log_mass
from optcov.metric.base import ModelMetric, Score
from optcov.sampler.noise import NoiseStream
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import VarianceStrategy


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser computes; the CPU for one without weights or buffers."""
    return next((tensor.device for tensor in [*denoiser.parameters(), *denoiser.buffers()]), torch.device("cpu"))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of ``[n]`` bits/dim, n at least 2.

    Raises:
        ValueError: if a value is not finite.
    """
    broken = int((~values.isfinite()).sum())
    if broken:
        raise ValueError(
            f"bits/dim are not finite for {broken} of {len(values)} images: the mean network or its variance answers "
            "NaN or infinity there; train it longer, or in trainer.precision=32-true"
        )
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class VariationalNLL(ModelMetric):
    """The bound in bits/dim, for eta = 1 whatever the sampler; never cut.

    Args:
        split, num_images: as in :class:`ModelMetric`.
        clip_x0: clamp the predicted x_0 to [-1, 1] in each step.
        log_mass: of a pixel's bin; :func:`optcov.likelihood.pixel_log_mass` or its like.
    """

    def __init__(
        self,
        split: Split = "test",
        num_images: int | None = None,
        clip_x0: bool = True,
        log_mass: LogMass = pixel_log_mass,
    ) -> None:
        super().__init__(split, num_images)
        self.clip_x0, self.log_mass = clip_x0, log_mass

    @torch.no_grad()
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
        batches = torch.split(from_uint8(levels), batch_size)
        measured = []
        with tqdm(total=len(batches) * len(times), desc="bits/dim", leave=False, unit="call") as progress:
            for i, x_0 in enumerate(batches):
                indices = range(i * batch_size, i * batch_size + len(x_0))
                given = denoiser if labels is None else denoiser.given(labels[indices.start : indices.stop].to(device))
                bound = VariationalBound(given, strategy, self.clip_x0, self.log_mass)
                noise = NoiseStream(derive_seed(seed, Stream.NLL), indices, denoiser.data_shape, device)
                measured.append(bound.terms(x_0.to(device), times, noise, progress.update).cpu())
        terms = torch.cat(measured, 1) / (levels[0].numel() * math.log(2))
        value, error = mean_and_error(terms.sum(0))
        means, errors = terms.mean(1).tolist(), (terms.std(1) / math.sqrt(len(levels))).tolist()
        transitions = [
            {"t": t, "s": s, "value": mean, "standard_error": error}
            for t, s, mean, error in zip(
                times[1:].tolist(), times[:-1].tolist(), means[1:-1], errors[1:-1], strict=True
            )
        ]
        details = {
            "unit": "bits/dim",
            "total": {"value": value, "standard_error": error},
            "decoder": {"value": means[0], "standard_error": errors[0]},
            "prior": {"value": means[-1], "standard_error": errors[-1]},
            "transitions": transitions,
        }
        return Score(value, error, details)
