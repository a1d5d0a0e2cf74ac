"""Stores samples on disk while they are being drawn, so that an interrupted job does not draw them again.

Each batch is a file ``START-STOP.npz`` that holds the samples with these indices, and the time and network calls they
took.  A file is renamed into place only when complete; its CRC detects later corruption.  At most one batch is in
memory.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optcov.checkpoint import digest_of
from optcov.denoiser import Cost
from optcov.errors import ConfigError
from optcov.files import atomic_write, write_atomically
from optcov.foreign import DamagedError, read_json, sealed_json
from optcov.keys import NETWORK, PLACE, SAMPLES, TRAINING, VARIANCE, Config, difference, select
from optcov.parts import Parts
from optcov.sampler import batches

log = logging.getLogger(__name__)

PARTS = ".parts"  # the folder of samples in the folder of a run
NAME = re.compile(r"\d{9,}-\d{9,}\.npz")
SAMPLES_FORMAT = 2  # increase this when a code change alters sample i of a config
BEGAN = time.time() - time.monotonic()  # when this machine's monotonic clock was 0, as far as this process knows
COUNTS = tuple(field.name for field in fields(Cost))


def now() -> float:
    """Seconds by a clock that all processes share, and that nobody sets back while a process runs."""
    return BEGAN + time.monotonic()


class SampleStore:
    """Holds samples 0..count - 1 in a folder; any number of processes may write, and iteration yields chunks in order.

    Args:
        folder: a folder that nothing else uses.
        shape: shape of one sample.
        count: number of samples; files with later indices are ignored.
        batch_size: maximum number of samples per file.
        dtype: type of the samples: uint8, or float32.
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
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)  # another process may have been first
        return [batch for batch in self.batches if not there[batch.start : min(batch.stop, self.count)].all()]

    def write(self, indices: range, images: Tensor, began: float, ended: float, cost: Cost) -> None:
        """Store the samples of a batch.

        Args:
            indices: the indices of the samples, ``[B]``.
            images: ``[B, *shape]``, of the store's type.
            began, ended: start and end in seconds, by `now`.
            cost: network calls that the batch took.
        Raises:
            OSError: if the file cannot be written; no partial file is left.
        """
        name = f"{indices.start:09d}-{indices.stop:09d}.npz"
        with atomic_write(self.folder / name) as path, path.open("wb") as file:
            interval = np.array([began, ended])
            np.savez(file, images=images.cpu().numpy(), interval=interval, cost=np.array(astuple(cost)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Yield chunks ``[b, *shape]`` of all samples, in order.

        Raises:
            ValueError: if any samples are missing.
        """
        for path, keep in self._pieces():
            with np.load(path) as part:
                yield torch.from_numpy(part["images"][keep])

    def first(self, count: int) -> Tensor:
        """The first ``count`` samples, ``[count, *shape]``, or all if there are fewer."""
        chunks: list[Tensor] = []
        for chunk in self:
            chunks.append(chunk)
            if sum(map(len, chunks)) >= count:
                break
        return torch.cat(chunks)[:count]

    def seconds(self) -> float:
        """The seconds during which at least one process was drawing; pauses do not count."""
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
        """``nfe``, ``ne`` and, of a classifier that guides, ``classifier_calls`` of one sample, on average.

        See `optcov.denoiser.Cost`.
        """
        total = np.zeros(len(COUNTS))
        for path, keep in self._pieces():
            with np.load(path) as part:
                rows = np.arange(len(part["images"]))[keep]
                total += part["cost"] * (len(rows) / len(part["images"]))
        each = dict(zip(COUNTS, (total / self.count).tolist(), strict=True))
        return {
            name: int(value) if value.is_integer() else value
            for name, value in each.items()
            if value or name != "classifier_calls"
        }

    def _files(self) -> list[tuple[range, Path]]:
        """All files, sorted by first index with longer ones first."""
        named = [path for path in self.folder.glob("*-*.npz") if NAME.fullmatch(path.name)]
        files = [(range(*map(int, path.stem.split("-"))), path) for path in named]
        return sorted(files, key=lambda file: (file[0].start, -file[0].stop))

    def _pieces(self) -> Iterator[tuple[Path, slice]]:
        """Yield the files and rows that make up the samples in order; files from two batch sizes may overlap."""
        position = 0
        for span, path in self._files():
            if span.start > position or position >= self.count:
                break
            if span.stop > position:
                yield path, slice(position - span.start, self.count - span.start)
                position = span.stop
        if position < self.count:
            raise ValueError(
                f"{self.folder} lacks sample {position}, although all processes have finished: "
                "give an output_dir that all of them share"
            )

    def _is_complete(self, span: range, path: Path) -> bool:
        try:
            with np.load(path) as part:  # reading compares the checksums
                images, interval, cost = part["images"], part["interval"], part["cost"]
        except Exception:  # damaged files make the reader raise almost any exception
            return False
        shapes = (images.shape, interval.shape, cost.shape)
        expected = ((len(span), *self.shape), (2,), (len(COUNTS),))
        return torch.from_numpy(images[:0]).dtype == self.dtype and shapes == expected


def samples_identity(config: Config, parts: Parts, device: torch.device) -> dict[str, Any]:
    """Everything that determines sample i, as JSON: config, weights, times, and the kind of device.

    The kind of device matters because its random generator draws the noise.
    """
    fitted = {"times": parts.times, **parts.sampler.measured()}
    for module in parts.modules:
        fitted |= {f"{type(module).__name__}.{name}": value for name, value in module.state_dict().items()}
    determine = NETWORK | TRAINING | VARIANCE | SAMPLES
    settings = select(config.model_dump(), lambda what: what & determine and not what & PLACE)
    identity = {
        "format": SAMPLES_FORMAT,
        "device": device.type,
        **settings,
        **({} if parts.data.sample_shape == parts.data.data_shape else {"decoded_by": parts.data.identity()}),
        "weights_and_times": digest_of(fitted),
    }
    return dict(json.loads(json.dumps(identity)))  # as a file gives it back


def read_record(path: Path) -> Any:
    """What a file says of the samples beside it; None if it is damaged, so that it is that of no samples."""
    try:
        return read_json(path)
    except DamagedError as error:
        log.warning("%s is damaged, %s", path, error)
        return None


def lock_samples(folder: Path, ours: dict[str, Any]) -> None:
    """Claim a folder by writing down what determines its samples; existing samples are kept if they match."""
    record = folder / "identity.json"
    theirs = read_record(record) if record.exists() else None
    if not isinstance(theirs, dict):
        if record.exists():  # its samples may be of anything
            delete_partial_samples(folder.parent)
        folder.mkdir(exist_ok=True)
        write_atomically(record, sealed_json(ours))
        return
    for key in ours | theirs:
        if theirs.get(key) != ours.get(key):
            raise ConfigError(
                f"output_dir = {folder.parent} holds unfinished samples of another config "
                f"({difference(key, theirs.get(key), ours.get(key))}): give that config to finish them, "
                f"delete {folder} to draw anew, or choose another hydra.run.dir"
            )


def delete_partial_samples(folder: Path) -> None:
    """Delete the samples that a run keeps in its folder, once they have been exported or scored."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
