"""Shuffled batches of a tensor in memory; they need no worker processes, and their position can be checkpointed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from optcov.seeds import Stream, derive_seed


class FlippedBatch(NamedTuple):
    """Images and a mask of those to mirror; mirroring is left to the device that uses them.

    Attributes:
        images: ``[B, C, H, W]``.
        flips: bool ``[B]``, True for those to mirror.
    """

    images: Tensor
    flips: Tensor

    def flipped(self) -> Tensor:
        """The images, mirrored left to right where ``flips`` is True."""
        both = torch.cat([self.images, self.images.flip(-1)])  # six times as fast as torch.where on a CPU
        return both.index_select(0, torch.arange(len(self.flips), device=both.device) + len(self.flips) * self.flips)


class LabelledBatch(NamedTuple):
    """Samples and their classes.

    Attributes:
        samples: ``[B, ...]``, or images still to be mirrored.
        labels: int64 ``[B]``.
    """

    samples: Tensor | FlippedBatch
    labels: Tensor


class RandomBatches:
    """A stream of shuffled batches; a batch may span two epochs, and its content depends only on its position.

    Args:
        data: ``[n, ...]``, on any device; batches are made on the same device.
        batch_size: samples per batch of this process.
        num_batches: length of the stream.
        seed: seed of the order.
        rank, world_size: rank of this process and number of processes; each takes its own part of every epoch.
        random_flip: yield `FlippedBatch` with half of the images marked, depending only on (seed, rank, position).
        labels: class of each sample, int64 ``[n]``; if given, yield `LabelledBatch`.
    Raises:
        ValueError: if ``data`` is empty.
    """

    def __init__(
        self,
        data: Tensor,
        batch_size: int,
        num_batches: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        random_flip: bool = False,
        labels: Tensor | None = None,
    ) -> None:
        if len(data) == 0:
            raise ValueError("the training data are empty: give data with at least one sample")
        self.data, self.batch_size, self.num_batches = data, batch_size, num_batches
        self.seed, self.rank, self.world_size, self.random_flip = seed, rank, world_size, random_flip
        self.labels = labels
        self.position = 0
        self._orders: dict[int, Tensor] = {}  # orders of the last two epochs

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Tensor | FlippedBatch | LabelledBatch]:
        while self.position < self.num_batches:
            first = (self.position * self.world_size + self.rank) * self.batch_size
            indices = self._indices(first, first + self.batch_size)
            images = self.data.index_select(0, indices.to(self.data.device))
            batch = FlippedBatch(images, self._flips()) if self.random_flip else images
            self.position += 1
            yield batch if self.labels is None else LabelledBatch(batch, self.labels.index_select(0, indices))

    def _flips(self) -> Tensor:
        stream = torch.Generator().manual_seed(derive_seed(self.seed, Stream.FLIPS, self.rank, self.position))
        return torch.rand(self.batch_size, generator=stream) < 0.5

    def _indices(self, start: int, stop: int) -> Tensor:
        """Indices of the samples ``start`` to ``stop`` in the concatenation of all epochs."""
        n = len(self.data)
        epochs = range(start // n, (stop - 1) // n + 1)
        return torch.cat([self._order(epoch)[max(start - epoch * n, 0) : stop - epoch * n] for epoch in epochs])

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, Stream.EPOCH, epoch))
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = kept | {epoch: torch.randperm(len(self.data), generator=generator)}
        return self._orders[epoch]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
