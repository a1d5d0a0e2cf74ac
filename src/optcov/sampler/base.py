"""What every sampler offers: from a denoiser, a variance strategy and a list of times to samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.guidance.base import Guidance
from optcov.sampler.noise import NoiseStream
from optcov.sampler.progress import ImageBar
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde


class Sampler(ABC):
    """A rule of update.

    Args:
        num_steps: K, the number of times visited; at least 1.
    Attributes:
        uses_variance: whether the noise of a step comes from the strategy; solvers of an ODE have none, those of an
            SDE prescribe it.
    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    uses_variance: ClassVar[bool] = True

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps = {num_steps} makes no samples: give a number from 1 to N")
        self.num_steps = num_steps

    def check(self, strategy: VarianceStrategy) -> None:
        """Refuse a strategy that this sampler would ignore: one that draws no reverse kernel takes ``C = 0`` alone.

        Raises:
            ValueError: naming the pair and what is possible.
        """
        if not self.uses_variance and not isinstance(strategy, BetaTilde):
            raise ValueError(
                f"var = {type(strategy).__name__} would be ignored by sampler = {type(self).__name__}, whose steps "
                "take no fitted variance: set var=beta_tilde, or sampler=ddpm or sampler=ddim"
            )

    def network_calls(self, times: Tensor) -> int:
        """How often the network is called for the times of a trajectory: once each, unless a sampler says otherwise."""
        return len(times)

    @abstractmethod
    def sample(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, noise: NoiseStream) -> Tensor:
        """Draw one batch of x_0, ``[B, *event]``.

        Args:
            denoiser, strategy: in eval mode, on the device of ``noise``.
            times: ascending float64 ``[K]`` in (0, 1], from a trajectory.
            noise: one stream per sample.
        """


def order_within(order: int, num_steps: int) -> int:
    """The order of a solver, if it is 1, 2 or 3 and there are as many steps.

    Raises:
        ValueError: if it is not.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"sampler.order = {order} is no order of this solver: give 1, 2 or 3")
    if order > num_steps:
        raise ValueError(
            f"sampler.order = {order} is above sampler.num_steps = {num_steps}: give at most {num_steps}, or more steps"
        )
    return order


def batches(count: int, batch_size: int) -> list[range]:
    """The indices 0..count - 1 in as few batches as can be, all of one size.

    Every network call then has one shape, for which it is compiled once, and the same arithmetic.  The last batch may
    reach beyond ``count``, by less than one index for each batch.

    Args:
        count: how many indices.
        batch_size: the largest size of a batch.
    Raises:
        ValueError: if either is below 1.
    """
    if count < 1:
        raise ValueError(f"count = {count} draws nothing: give at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} draws nothing: give at least 1")
    size = math.ceil(count / math.ceil(count / batch_size))
    return [range(start, start + size) for start in range(0, count, size)]


def sample(
    denoiser: Denoiser,
    strategy: VarianceStrategy,
    sampler: Sampler,
    times: Tensor,
    count: int,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
    labels: Tensor | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Draw samples; the plain call for notebooks.

    Args:
        denoiser, strategy: a mean network and its (fitted) variance; moved to ``device``, put in eval mode.
        sampler, times: which update, and which times (``trajectory.times(schedule, num_steps)``).
        count: how many samples.
        seed: sample i depends on (seed, i) alone, whatever the batch size.
        batch_size: samples at once, at most.
        device: where to compute.
        progress: show a bar.
        labels: the class of each sample, int64 ``[count]`` in 0..K-1, for a denoiser that knows classes or guidance;
            None for none, which is the null label where there are classes.
        guidance: towards the labels, moved and put in eval mode as the others; None for none.
    Returns:
        float32 ``[count, *event]``, nominally in [-1, 1], on the CPU.
    Raises:
        ValueError: if ``count`` or ``batch_size`` is below 1, the sampler has no use for the strategy, labels and
            samples are not as many, or guidance has no labels.
    """
    sampler.check(strategy)
    parts = batches(count, batch_size)
    denoiser.to(device).eval()
    strategy.to(device).eval()
    if labels is None and guidance is not None:
        raise ValueError("guidance without labels leads nowhere: give the class of each sample")
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels are {len(labels)}, samples {count}: give a class for each sample")
    if labels is not None:  # the last batch may reach beyond
        labels = torch.cat([labels, labels.new_zeros(parts[-1].stop - count)]).to(device)
    guidance = (guidance or Guidance(denoiser)).to(device).eval()
    images = torch.empty(count, *denoiser.data_shape)  # out here, so that gradients may be taken with respect to them
    bar = ImageBar(denoiser, sampler.network_calls(times), count, disable=not progress)
    with bar, torch.inference_mode():
        for indices in parts:
            bar.begin(len(indices))
            noise = NoiseStream(seed, indices, denoiser.data_shape, device)
            wanted = None if labels is None else labels[indices.start : indices.stop]
            drawn = sampler.sample(*guidance.bind(denoiser, strategy, wanted), times, noise)
            images[indices.start : indices.stop] = drawn[: count - indices.start]
            bar.end()
    return images
