"""Samples on disk while they are being drawn, so that an interrupted job does not draw them again.

Each batch is a file ``START-STOP.npz`` with the samples of these indices, and the time and network calls they took.  It
is renamed into place only when complete; its CRC detects later corruption.  At most one batch is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optcov.denoiser import Cost
from optcov.files import atomic_write
from optcov.sampler import batches

log = logging.getLogger(__name__)


class SampleStore:
    """The samples 0..count - 1 in a folder, written by any number of processes; iterates over chunks in order.

    Args:
        folder: used by this class alone.
        shape: of one sample.
        count: how many samples; files with later indices are ignored.
        batch_size: samples per file, at most.
        dtype: of the samples: uint8, or float32.
    Raises:
        ValueError: if ``count`` or ``batch_size`` is below 1.
    """

    def __init__(
        self, folder: Path, shape: Sequence[int], count: int, batch_size: int, dtype: torch.dtype = torch.uint8
    ) -> None:
        self.folder, self.shape, self.count, self.dtype = folder, tuple(shape), count, dtype
        self.batches = batches(count, batch_size)

    def missing(self) -> list[range]:
        """The batches still to be drawn; damaged files are deleted, with a warning."""
        there = np.zeros(self.batches[-1].stop, dtype=bool)
        for span, path in self._files():
            if self._is_complete(span, path):
                there[span.start : span.stop] = True
            else:
                log.warning("%s is damaged: its samples are drawn again", path)
                path.unlink(missing_ok=True)  # another process may have been first
        return [batch for batch in self.batches if not there[batch.start : min(batch.stop, self.count)].all()]

    def write(self, indices: range, images: Tensor, began: float, ended: float, cost: Cost) -> None:
        """Store the samples of a batch.

        Args:
            indices: of the samples, ``[B]``.
            images: ``[B, *shape]``, of the store's type.
            began, ended: the time in seconds, by a clock that all processes share.
            cost: of the batch.
        Raises:
            OSError: if the file cannot be written; no partial file is left.
        """
        name = f"{indices.start:09d}-{indices.stop:09d}.npz"
        with atomic_write(self.folder / name) as path, path.open("wb") as file:
            interval, calls = np.array([began, ended]), np.array([cost.nfe, cost.ne])
            np.savez(file, images=images.cpu().numpy(), interval=interval, cost=calls)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Chunks ``[b, *shape]`` of all samples, in order.

        Raises:
            ValueError: if any are missing.
        """
        for path, keep in self._pieces():
            with np.load(path) as part:
                yield torch.from_numpy(part["images"][keep])

    def first(self, count: int) -> Tensor:
        """The first samples, ``[count, *shape]``, or all if there are fewer."""
        chunks: list[Tensor] = []
        for chunk in self:
            chunks.append(chunk)
            if sum(map(len, chunks)) >= count:
                break
        return torch.cat(chunks)[:count]

    def seconds(self) -> float:
        """The time during which at least one process was drawing; pauses do not count."""
        intervals = []
        for path, _ in self._pieces():
            with np.load(path) as part:
                intervals.append(part["interval"].tolist())
        seconds, until = 0.0, 0.0
        for began, ended in sorted(intervals):
            seconds += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return seconds

    def cost(self) -> dict[str, int | float]:
        """``nfe`` and ``ne`` of one sample, on average; see `optcov.denoiser.Cost`."""
        total = np.zeros(2)
        for path, keep in self._pieces():
            with np.load(path) as part:
                rows = np.arange(len(part["images"]))[keep]
                total += part["cost"] * (len(rows) / len(part["images"]))
        return {
            name: int(each) if each.is_integer() else each
            for name, each in zip(("nfe", "ne"), (total / self.count).tolist(), strict=True)
        }

    def _files(self) -> list[tuple[range, Path]]:
        """All files by first index, longer ones first."""
        files = [(range(*map(int, path.stem.split("-"))), path) for path in self.folder.glob("*-*.npz")]
        return sorted(files, key=lambda file: (file[0].start, -file[0].stop))

    def _pieces(self) -> Iterator[tuple[Path, slice]]:
        """Files and rows that make up the samples in order; files of two batch sizes may overlap."""
        position = 0
        for span, path in self._files():
            if span.start > position or position >= self.count:
                break
            if span.stop > position:
                yield path, slice(position - span.start, self.count - span.start)
                position = span.stop
        if position < self.count:
            raise ValueError(
                f"{self.folder} lacks sample {position} although all processes are done: "
                "give an output_dir that all of them share"
            )

    def _is_complete(self, span: range, path: Path) -> bool:
        try:
            with np.load(path) as part:  # reading compares the checksums
                images, interval, cost = part["images"], part["interval"], part["cost"]
        except Exception:  # a damaged file can make the reader raise almost anything
            return False
        shapes = (images.shape, interval.shape, cost.shape)
        return torch.from_numpy(images[:0]).dtype == self.dtype and shapes == ((len(span), *self.shape), (2,), (2,))
