"""White noise for sample i that depends on (seed, i) only: not on batch size, order, or number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.seeds import Stream, derive_seed


class NoiseStream:
    """One random stream per sample; each call draws the next numbers from every stream.

    Args:
        seed: of the whole set of samples.
        indices: the samples of the set that make up this batch, ``[B]``.
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
        """Standard normal ``[B, *shape]``; the shape of a sample where None."""
        event = self._shape if shape is None else shape
        noise = torch.empty(len(self._generators), *event, device=self._device, dtype=self._dtype)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise
