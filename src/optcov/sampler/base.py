"""What every sampler offers: from a denoiser, a variance strategy and a list of times to samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.denoiser import Denoiser
from optcov.sampler.noise import NoiseStream
from optcov.variance.base import VarianceStrategy


class Sampler(ABC):
    """A rule of update.

    Args:
        num_steps: K, the number of network calls; at least 1.
    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps = {num_steps} makes no samples: give a number from 1 to N")
        self.num_steps = num_steps

    def check(self, strategy: VarianceStrategy) -> None:  # noqa: B027 (most samplers take every strategy)
        """Refuse a strategy that this sampler can not use.

        Raises:
            ValueError: naming the pair and what is possible.
        """

    @abstractmethod
    def sample(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, noise: NoiseStream) -> Tensor:
        """Draw one batch of x_0, ``[B, *event]``.

        Args:
            denoiser, strategy: in eval mode, on the device of ``noise``.
            times: ascending float64 ``[K]`` in (0, 1], from a trajectory.
            noise: one stream per sample.
        """


@torch.no_grad()
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
) -> Tensor:
    """Draw samples; the plain call for notebooks.

    Args:
        denoiser, strategy: a mean network and its (fitted) variance; moved to ``device``, put in eval mode.
        sampler, times: which update, and which times (``trajectory.times(schedule, num_steps)``).
        count: how many samples.
        seed: sample i depends on (seed, i) alone, whatever the batch size.
        batch_size: samples at once.
        device: where to compute.
        progress: show a bar.
    Returns:
        float32 ``[count, *event]``, nominally in [-1, 1], on the CPU.
    """
    sampler.check(strategy)
    denoiser.to(device).eval()
    strategy.to(device).eval()
    batches: Iterable[range] = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    drawn = []
    for indices in tqdm(batches, desc="sampling", disable=not progress, unit="batch"):
        noise = NoiseStream(seed, indices, denoiser.data_shape, device)
        drawn.append(sampler.sample(denoiser, strategy, times, noise).cpu())
    return torch.cat(drawn)
