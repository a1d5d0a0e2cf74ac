"""White noise of which sample i's share depends on (seed, i) alone: not on batch size, order, or number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.seeds import Stream, derive_seed


class NoiseStream:
    """One random stream per sample; each call draws the next noise of all of them.

    Args:
        seed: of the whole set of samples.
        indices: which samples of the set, ``[B]``.
        shape: of one sample.
        device, dtype: of the noise.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # PyTorch's CPU generator reads 32 bits of its seed: with start + i no two samples of a set share a stream
        start = derive_seed(seed, Stream.SAMPLES)
        self._generators = [torch.Generator(device).manual_seed((start + i) % 2**32) for i in indices]
        self._shape, self._device, self._dtype = tuple(shape), device, dtype

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Standard normal ``[B, *shape]``, of a sample's own shape where None."""
        event = self._shape if shape is None else shape
        noise = torch.empty(len(self._generators), *event, device=self._device, dtype=self._dtype)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise
