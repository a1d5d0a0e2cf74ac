"""Decoded images, or their latents, on disk: one memory-mapped array with a manifest of its origin.

An entry is a folder ``NAME-KEY`` that holds ``images.npy`` (uint8 or float32 ``[n, C, H, W]``), ``labels.npy`` (int64
``[n]``, for data with classes) and ``manifest.json``.  The manifest holds their checksums, which each process verifies
when it first opens the entry.  An entry is written under a lock and a temporary name, and renamed when complete.  It is
therefore never seen half-written, and is decoded only once however many processes ask for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from optcov.data.records import CorruptImageError, Records
from optcov.lock import locked
from optcov.wording import first_line

log = logging.getLogger(__name__)

FORMAT = 2  # raise it when a change of the code decodes the same file to different pixels
CHUNK = 256  # images decoded between two writes
_verified: set[tuple[object, ...]] = set()  # file states (see _state) of entries whose checksums were verified


@dataclass(frozen=True)
class StoredImages:
    """An opened entry.

    Attributes:
        images: uint8 or float32 ``[n, C, H, W]``, mapped from the file; writing to it changes only this process's copy.
        labels: int64 ``[n]``, or None.
        manifest: origin, identity, count, shape, SHA-256 of the pixels and of the labels, class names, and skipped
            images; null if there are no labels or names.
        folder: folder of the entry.
    """

    images: Tensor
    labels: Tensor | None
    manifest: dict[str, Any]
    folder: Path

    def is_intact(self) -> bool:
        """Whether pixels and labels match their checksums; each process reads the whole files once."""
        state = tuple(_state(self.folder / name) for name in ("manifest.json", "images.npy", "labels.npy"))
        if state in _verified:
            return True
        expected = (self.manifest["sha256"], self.manifest["labels_sha256"])
        if (_digest(self.images), None if self.labels is None else _digest(self.labels)) != expected:
            return False
        _verified.add(state)
        return True


class PixelCache:
    """A folder of decoded image sets.

    Args:
        folder: path of the folder, which is created with the first entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, name: str, identity: dict[str, Any]) -> Path:
        """The folder of the images with this identity, whether it exists or not."""
        text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def open_or_build(
        self,
        name: str,
        identity: dict[str, Any],
        origin: str,
        records: Callable[[], Records],
        shape: tuple[int, int, int],
        skip_corrupt: bool = False,
        dtype: type[np.uint8 | np.float32] = np.uint8,
    ) -> StoredImages:
        """Open an entry; decode it first if it is missing or damaged.

        Args:
            name: a readable prefix of the entry's folder.
            identity: everything that determines the pixels, as JSON.
            origin: where the images come from, for the manifest.
            records: opens the images; called only to fill the entry.
            shape: ``(C, H, W)`` of each image.
            skip_corrupt: leave out images that cannot be decoded, with a warning that names them.
            dtype: type of the pixels.
        Raises:
            CorruptImageError: for the first image that cannot be decoded, unless they are skipped.
            ValueError: if there are no images, or the entry cannot be written.
        """
        entry = self.entry(name, identity)
        stored = _open(entry, dtype)
        if stored is not None:
            return stored
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with self._writing():
                held.enter_context(locked(self.folder / f".{entry.name}.lock", f"data.cache_dir = {entry}"))
            stored = _open(entry, dtype, report=True)  # another process may have been first
            if stored is not None:
                return stored
            partial = self.folder / f".{entry.name}.partial"
            _remove(partial)  # left by a process that was killed
            try:
                self._fill(partial, name, identity, origin, records(), shape, skip_corrupt, np.dtype(dtype))
                with self._writing():
                    _remove(entry)  # damaged: _open would have returned it otherwise
                    partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        stored = _open(entry, dtype)
        if stored is None:
            raise ValueError(f"data.cache_dir = {self.folder} lost {entry.name} just after it was written: run again")
        return stored

    def _fill(
        self,
        partial: Path,
        name: str,
        identity: dict[str, Any],
        origin: str,
        records: Records,
        shape: tuple[int, int, int],
        skip_corrupt: bool,
        dtype: np.dtype[Any],
    ) -> None:
        if len(records) == 0:
            raise ValueError(f"data.root = {origin} has no images for {name}: give another folder or split")
        self._refuse_without_space(len(records) * int(np.prod(shape)) * dtype.itemsize)
        log.info("%s: decoding %d images of %s into %s (once)", name, len(records), origin, self.folder)
        digest, kept, skipped = hashlib.sha256(), [], []
        with self._writing():
            partial.mkdir()
        with self._opened(partial / "images.npy") as file, tqdm(total=len(records), desc=name, disable=None) as bar:
            with self._writing():
                _write_header(file, (len(records), *shape), dtype)
            for first in range(0, len(records), CHUNK):
                chunk = range(first, min(first + CHUNK, len(records)))
                good = []
                for index in chunk:
                    try:
                        good.append(np.ascontiguousarray(records.image(index), dtype).tobytes())
                    except CorruptImageError as error:
                        if not skip_corrupt:
                            raise CorruptImageError(
                                f"data.root: {error}: repair or delete it, or set data.skip_corrupt=true to skip it"
                            ) from error
                        log.warning("skipped: %s", error)
                        skipped.append(str(error))
                    else:
                        kept.append(index)
                pixels = b"".join(good)
                digest.update(pixels)
                with self._writing():
                    file.write(pixels)
                bar.update(len(chunk))
            if not kept:
                raise ValueError(f"data.root = {origin} has no image that can be decoded: {skipped[0]}")
            with self._writing():
                file.seek(0)
                _write_header(file, (len(kept), *shape), dtype)
        labels = None if records.labels is None else records.labels[kept]
        if labels is not None:
            with self._opened(partial / "labels.npy") as file, self._writing():
                np.save(file, labels)
        manifest = {
            "origin": origin,
            "identity": {"format": FORMAT, **identity},
            "count": len(kept),
            "shape": list(shape),
            "sha256": digest.hexdigest(),
            "labels_sha256": None if labels is None else _digest(torch.from_numpy(labels)),
            "classes": records.classes,
            "skipped": skipped,
        }
        with self._opened(partial / "manifest.json") as file, self._writing():
            file.write(json.dumps(manifest, indent=2).encode())

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        """Create a file, and sync it to disk when the block ends."""
        with self._writing():
            file = path.open("wb")
        try:
            yield file
            with self._writing():
                file.flush()
                os.fsync(file.fileno())
        finally:
            with self._writing():
                file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a disk error into a one-sentence ValueError."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"data.cache_dir = {self.folder} cannot be written ({error.strerror or error}): "
                "free space there, or set data.cache_dir to another disk"
            ) from error

    def _refuse_without_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"data.cache_dir must have {needed / 1e9:.2f} GB free for the decoded images "
                f"(got {free / 1e9:.2f} GB in {self.folder}): free space there, or set data.cache_dir to another disk"
            )


def _open(entry: Path, dtype: type[np.generic], report: bool = False) -> StoredImages | None:
    """Open an entry, which takes milliseconds once its checksums are verified.

    Args:
        entry: folder of the entry.
        dtype: type that its pixels must have.
        report: log a warning if it is damaged.
    Returns:
        the entry; None if it is missing or damaged.
    """
    if not entry.exists():
        return None
    try:
        manifest = json.loads((entry / "manifest.json").read_text())
        images = np.load(entry / "images.npy", mmap_mode="c")
        if images.dtype != dtype or list(images.shape) != [manifest["count"], *manifest["shape"]]:
            raise ValueError("its images do not match its manifest")
        labels = None
        if manifest["labels_sha256"] is not None:
            labels = torch.from_numpy(np.load(entry / "labels.npy"))
        stored = StoredImages(torch.from_numpy(images), labels, manifest, entry)
        if not stored.is_intact():
            raise ValueError("its content does not match its checksum")
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = first_line(error)
        if report:
            log.warning("%s is damaged (%s): making it again", entry, problem)
        return None
    return stored


def _digest(values: Tensor) -> str:
    """SHA-256 of the elements, read in chunks."""
    digest = hashlib.sha256()
    for chunk in torch.split(values, 4096):
        digest.update(chunk.numpy().data)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """Delete a folder, or a file in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _state(path: Path) -> tuple[str, int, int, int] | None:
    """A fingerprint that changes whenever a file is rewritten; None if the file is missing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    # NumPy pads the header, so its length does not depend on the number of images
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
