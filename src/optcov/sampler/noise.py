"""White noise that depends only on (seed, i) for sample i, not on batch size, order or number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.seeds import Stream, derive_seed


class NoiseStream:
    """One random stream per sample; each call draws the next numbers from every stream.

    Args:
        seed: seed of the whole set of samples.
        indices: the indices of this batch's samples within the set, ``[B]``.
        shape: shape of one sample.
        device, dtype: device and dtype of the noise.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # PyTorch's CPU generator uses only 32 bits of its seed; start + i gives every sample of a set its own stream
        start = derive_seed(seed, Stream.SAMPLES)
        self._generators = [torch.Generator(device).manual_seed((start + i) % 2**32) for i in indices]
        self._shape, self._device, self._dtype = tuple(shape), device, dtype

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """Draw standard normal numbers ``[B, *shape]``; ``shape`` defaults to the shape of a sample."""
        event = self._shape if shape is None else shape
        noise = torch.empty(len(self._generators), *event, device=self._device, dtype=self._dtype)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise
