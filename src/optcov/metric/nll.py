"""Bits per dimension by the variational bound, term by term (see `optcov.likelihood.variational`).

Data on grey levels have a probability, scored in bits; continuous data have a density, scored in nats.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optcov.data.base import Split
from optcov.denoiser import Denoiser
from optcov.likelihood import DensityBound, LogMass, VariationalBound, pixel_log_mass
from optcov.metric.base import Batch, ModelMetric, mean_and_error
from optcov.ranges import PositiveCount
from optcov.seeds import Stream
from optcov.variance.base import VarianceStrategy


class VariationalNLL(ModelMetric):
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


class VariationalDensity(ModelMetric):
    """The bound on ``-log`` density of continuous data, in nats per dimension; it always uses eta = 1 and no cut.

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
