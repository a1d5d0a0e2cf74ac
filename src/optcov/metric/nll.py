"""Bits per dimension by the variational bound, term by term (see `optcov.likelihood.variational`).

Data on grey levels have a probability, in bits; continuous data have a density, in nats.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.data.base import Split
from optcov.data.pixels import from_uint8
from optcov.denoiser import Denoiser, device_of
from optcov.likelihood import DensityBound, LogMass, VariationalBound, pixel_log_mass
from optcov.metric.base import ModelMetric, Score
from optcov.ranges import PositiveCount
from optcov.sampler.noise import NoiseStream
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Batch:
    """A batch of data to score.

    Args:
        x_0: 8-bit data in the denoiser's range, ``[B, *data_shape]``.
        noise: one stream per sample.
        condition: labels, int64 ``[B]``; None for no labels.
        advance: call this at each network call, for a progress bar.
    """

    x_0: Tensor
    noise: NoiseStream
    condition: Tensor | None
    advance: Callable[[], object]


class BitsPerDim(ModelMetric):
    """``-log p(x_0)`` or a bound on it, in bits per dimension, as a sum of terms.

    Attributes:
        stream: of the noise.
        unit: of the score.
        nats_in_unit: of the logarithm.
    """

    stream: ClassVar[Stream]
    unit: ClassVar[str] = "bits/dim"
    nats_in_unit: ClassVar[float] = math.log(2)

    @abstractmethod
    def nats(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, batch: Batch) -> Tensor:
        """Compute the terms of a batch.

        Args:
            denoiser, strategy, times: as in `measure`.
            batch: the data.
        Returns:
            float64 ``[terms, B]``, in nats.
        """

    def term_details(self, times: Tensor, bits: Tensor) -> dict[str, Any]:
        """Details of the terms ``[terms, n]`` in the score's unit, for `Score`."""
        return {}

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
        x_0 = denoiser.data_range.from_unit(from_uint8(levels) if levels.dtype == torch.uint8 else levels)
        return self.score(denoiser, strategy, times, x_0, seed, batch_size, labels)

    @torch.no_grad()
    def score(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        x_0: Tensor,
        seed: int = 0,
        batch_size: int = 256,
        labels: Tensor | None = None,
        progress: bool = True,
    ) -> Score:
        """As `measure`, for data ``[n, *data_shape]`` that are already in the denoiser's range."""
        device = device_of(denoiser)
        found, calls = [], []
        with tqdm(desc=self.unit, leave=False, unit="call", disable=not progress) as bar:
            for i, clean in enumerate(torch.split(x_0, batch_size)):
                indices = range(i * batch_size, i * batch_size + len(clean))
                noise = NoiseStream(derive_seed(seed, self.stream), indices, denoiser.data_shape, device)
                condition = None if labels is None else labels[indices.start : indices.stop].to(device)
                before = denoiser.cost.nfe
                batch = Batch(clean.to(device), noise, condition, bar.update)
                found.append(self.nats(denoiser, strategy, times, batch).cpu())
                calls.append((denoiser.cost.nfe - before) // len(clean))
        bits = torch.cat(found, 1) / (x_0[0].numel() * self.nats_in_unit)
        total = mean_and_error(bits.sum(0))
        details = {"unit": self.unit, "total": total, "network_calls": calls}  # calls of each batch
        return Score(total["value"], total["standard_error"], details | self.term_details(times, bits))


class VariationalNLL(BitsPerDim):
    """The variational bound; it always uses eta = 1 and no cut, whatever the sampler.

    Args:
        split, num_images: as in `ModelMetric`.
        clip_x0: clamp the predicted x_0 to the range of the data in each step.
        log_mass: function for the log probability of a pixel's bin, such as `optcov.likelihood.pixel_log_mass`.
    """

    stream = Stream.NLL

    def __init__(
        self,
        split: Split = "test",
        num_images: PositiveCount | None = None,
        clip_x0: bool = True,
        log_mass: LogMass = pixel_log_mass,
    ) -> None:
        super().__init__(split, num_images)
        self.clip_x0, self.log_mass = clip_x0, log_mass

    def nats(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, batch: Batch) -> Tensor:
        bound = VariationalBound(denoiser, strategy, self.clip_x0, self.log_mass)
        return bound.terms(batch.x_0, times, batch.noise, batch.advance, batch.condition)

    def term_details(self, times: Tensor, bits: Tensor) -> dict[str, Any]:
        return terms_of_bound(times, bits)


class VariationalDensity(BitsPerDim):
    """The bound on ``-log`` of the density of continuous data, in nats per dimension, with eta = 1 and never cut.

    Args:
        split, num_images: as in `ModelMetric`.
        clip_x0: clamp the predicted x_0 to the range of the data, if it has one, in each step.
    """

    stream, unit, nats_in_unit = Stream.NLL, "nats/dim", 1.0

    def __init__(self, split: Split = "test", num_images: PositiveCount | None = None, clip_x0: bool = True) -> None:
        super().__init__(split, num_images)
        self.clip_x0 = clip_x0

    def nats(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, batch: Batch) -> Tensor:
        bound = DensityBound(denoiser, strategy, self.clip_x0)
        return bound.terms(batch.x_0, times, batch.noise, batch.advance, batch.condition)

    def term_details(self, times: Tensor, bits: Tensor) -> dict[str, Any]:
        return terms_of_bound(times, bits)


def terms_of_bound(times: Tensor, bits: Tensor) -> dict[str, Any]:
    """Mean and standard error of each term ``[K + 1, n]`` of a bound, with the times of its transitions."""
    decoder, *transitions, prior = map(mean_and_error, bits)
    t, s = times[1:].tolist(), times[:-1].tolist()
    steps = [{"t": t[i], "s": s[i], **term} for i, term in enumerate(transitions)]
    return {"decoder": decoder, "prior": prior, "transitions": steps}


def mean_and_error(values: Tensor) -> dict[str, float]:
    """``value`` and ``standard_error`` of ``[n]`` bits/dim, n at least 2.

    Raises:
        ValueError: if a value is not finite.
    """
    broken = int((~values.isfinite()).sum())
    if broken:
        raise ValueError(
            f"bits/dim must be finite (the mean network or its variance gives NaN or infinity for {broken} of "
            f"{len(values)} images): train longer, or with trainer.precision=32-true"
        )
    return {"value": float(values.mean()), "standard_error": float(values.std()) / math.sqrt(len(values))}
