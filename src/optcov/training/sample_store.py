"""Samples on disk while they are being drawn: what was drawn before an interruption is not drawn again.

For each batch there is a file ``START-STOP.npz``, which holds the samples with these indices and the time they took.
It gets its name once it is whole, and zip's checksums tell what was damaged since, so that the names say what is done.
No more than a batch is in memory at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optcov.files import atomic_write
from optcov.sampler import batches

log = logging.getLogger(__name__)


class SampleStore:
    """The samples 0..count - 1 in a folder, drawn by any number of processes; iterates over chunks in order.

    Args:
        folder: which this class has for itself.
        shape: of one sample.
        count: how many samples; there may be files of more, which are left alone.
        batch_size: samples in a file, at most.
    Raises:
        ValueError: if ``count`` or ``batch_size`` is below 1.
    """

    def __init__(self, folder: Path, shape: Sequence[int], count: int, batch_size: int) -> None:
        self.folder, self.shape, self.count = folder, tuple(shape), count
        self.batches = batches(count, batch_size)

    def missing(self) -> list[range]:
        """The batches that have yet to be drawn; files that are damaged are deleted, with a warning."""
        there = np.zeros(self.batches[-1].stop, dtype=bool)
        for span, path in self._files():
            if self._is_whole(span, path):
                there[span.start : span.stop] = True
            else:
                log.warning("%s is damaged: its samples are drawn again", path)
                path.unlink(missing_ok=True)  # another process may have been first
        return [batch for batch in self.batches if not there[batch.start : min(batch.stop, self.count)].all()]

    def write(self, indices: range, images: Tensor, began: float, ended: float) -> None:
        """Keep the samples of a batch.

        Args:
            indices: of the samples, ``[B]``.
            images: uint8 ``[B, *shape]``.
            began, ended: when, in seconds of one clock.
        Raises:
            OSError: if the file can not be written; there is none then.
        """
        name = f"{indices.start:09d}-{indices.stop:09d}.npz"
        with atomic_write(self.folder / name) as path, path.open("wb") as file:
            np.savez(file, images=images.cpu().numpy(), interval=np.array([began, ended]))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Chunks uint8 ``[b, *shape]`` of all samples, in order.

        Raises:
            ValueError: if there are not all.
        """
        for path, keep in self._pieces():
            with np.load(path) as part:
                yield torch.from_numpy(part["images"][keep])

    def first(self, count: int) -> Tensor:
        """The first samples, uint8 ``[count, *shape]``, or all if there are fewer."""
        chunks: list[Tensor] = []
        for chunk in self:
            chunks.append(chunk)
            if sum(map(len, chunks)) >= count:
                break
        return torch.cat(chunks)[:count]

    def seconds(self) -> float:
        """How long at least one process was at work on them, whenever that was; pauses do not count."""
        intervals = []
        for path, _ in self._pieces():
            with np.load(path) as part:
                intervals.append(part["interval"].tolist())
        seconds, until = 0.0, 0.0
        for began, ended in sorted(intervals):
            seconds += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return seconds

    def _files(self) -> list[tuple[range, Path]]:
        """All files, the longest first of those that begin alike."""
        files = [(range(*map(int, path.stem.split("-"))), path) for path in self.folder.glob("*-*.npz")]
        return sorted(files, key=lambda file: (file[0].start, -file[0].stop))

    def _pieces(self) -> Iterator[tuple[Path, slice]]:
        """Which rows of which files make up the samples in order; files of two batch sizes may overlap."""
        position = 0
        for span, path in self._files():
            if span.start > position or position >= self.count:
                break
            if span.stop > position:
                yield path, slice(position - span.start, self.count - span.start)
                position = span.stop
        if position < self.count:
            raise ValueError(
                f"{self.folder} holds no sample {position} although all processes have drawn theirs: "
                "give an output_dir that all of them share"
            )

    def _is_whole(self, span: range, path: Path) -> bool:
        try:
            with np.load(path) as part:  # reading compares the checksums
                images, interval = part["images"], part["interval"]
        except Exception:  # whatever a damaged file makes the reader say
            return False
        return (images.dtype, images.shape, interval.shape) == (np.uint8, (len(span), *self.shape), (2,))
