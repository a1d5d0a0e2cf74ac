"""The images with which samples are compared, and their features and statistics, which are computed once and cached.

Statistics are stored in ``.npz`` files with ``mu`` and ``sigma``, as in other FID programs.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from optcov.data.untrusted import read_npz
from optcov.files import atomic_write
from optcov.lock import locked
from optcov.metric.moments import Moments
from optcov.wording import first_line

log = logging.getLogger(__name__)

FORMAT = 1  # increase this when a code change alters the features of a network
CHUNK = 1024  # images
MAX_KEPT = 2**35  # largest size in bytes of our own cached features: 4 million images of 2048 numbers each
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)

Arrays = dict[str, NDArray[Any]]


class FeatureExtractor(Protocol):
    """Computes features of images; see `FeatureNetwork`.

    Attributes:
        name: the network's name in messages.
        key: identifies the network and its weights, which determine an image's features; usable in a file name.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features ``[n, d]`` of uint8 images ``[n, *data_shape]``."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, in float64.

    Args:
        mean: ``[d]``.
        covariance: ``[d, d]``.
        network: `FeatureExtractor.key` of the network; None if the file does not name it.
        data_shape: shape of an image; None if the file does not name it.
    """

    mean: Tensor
    covariance: Tensor
    network: str | None = None
    data_shape: tuple[int, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Read statistics from a ``.npz`` file with ``mu`` and ``sigma``.

        Raises:
            ValueError: if the file is missing or damaged, or contains anything else.
        """
        what = "give a .npz file with the mean mu [d] and the covariance sigma [d, d] of features"
        if not path.is_file():
            raise ValueError(f"reference = {path} is not a file: {what}, or null for the training images")
        try:
            arrays = read_npz(path, ("mu", "sigma", "network", "data_shape"))
        except KeyError as error:
            raise ValueError(f"reference = {path} contains {error.args[0]}: {what}") from error
        except _DAMAGE as error:
            raise ValueError(
                f"reference = {path} is damaged or not a .npz of plain arrays ({first_line(error)}): {what}"
            ) from error
        try:
            mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
            network = str(arrays["network"]) if "network" in arrays else None
            shape = tuple(map(int, arrays["data_shape"])) if "data_shape" in arrays else None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"reference = {path} contains {', '.join(arrays) or 'nothing'}: {what}") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"reference = {path} contains mu {list(mean.shape)} and sigma {list(covariance.shape)}: {what}"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"reference = {path} contains NaN or infinity: {what}")
        return cls(mean, covariance, network, shape)

    def arrays(self) -> Arrays:
        """The arrays of a ``.npz`` file."""
        arrays = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        origin = {"network": self.network, "data_shape": self.data_shape}
        return arrays | {name: np.array(value) for name, value in origin.items() if value is not None}


class Reference:
    """The images with which samples are compared.

    Args:
        images: uint8 ``[n, *data_shape]``; read in chunks, so they may be a memory-mapped file.
        folder: cache for statistics and features, whose file names contain a hash of the images and the name of the
            network; None for no cache.
    Raises:
        ValueError: if the images are not uint8, or fewer than 2.
    """

    def __init__(self, images: Tensor, folder: Path | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim < 2:
            raise ValueError(f"the reference must be uint8 [n, *data_shape] (got {images.dtype} {list(images.shape)})")
        if len(images) < 2:
            raise ValueError(f"the reference must have at least 2 images (got {len(images)}): a covariance needs two")
        self.images, self.folder = images, folder
        self.data_shape = tuple(images.shape[1:])

    @cached_property
    def digest(self) -> str:
        """A short hash of shape and pixels, which identifies the images wherever they are stored."""
        digest = hashlib.sha256(str(list(self.images.shape)).encode())
        for chunk in torch.split(self.images, CHUNK):
            digest.update(chunk.contiguous().cpu().numpy().data)
        return digest.hexdigest()[:16]

    def statistics(self, network: FeatureExtractor) -> Statistics:
        """Mean and covariance of the features; the first process that asks for them computes them in one pass."""

        def compute() -> Arrays:
            kept = self._path(network, "features")
            moments = Moments()
            for features in self._extract(network) if kept is None or not kept.is_file() else [self.features(network)]:
                moments.update(features)
            return Statistics(*moments.mean_and_covariance(), network.key, self.data_shape).arrays()

        arrays = self._once(self._path(network, "statistics"), compute)
        mean, covariance = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma"))
        return Statistics(mean, covariance, network.key, self.data_shape)

    def features(self, network: FeatureExtractor) -> Tensor:
        """The features of each image, float32 ``[n, d]`` on the CPU; the first process that asks computes them."""

        def compute() -> Arrays:
            return {"features": torch.cat([features.float().cpu() for features in self._extract(network)]).numpy()}

        return torch.from_numpy(self._once(self._path(network, "features"), compute)["features"])

    def _extract(self, network: FeatureExtractor) -> Iterator[Tensor]:
        chunks = torch.split(self.images, CHUNK)
        for chunk in tqdm(chunks, desc=f"{network.name} features of the reference", leave=False, disable=None):
            yield network(chunk)

    def _path(self, network: FeatureExtractor, what: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{network.key}-{self.digest}-{what}-{FORMAT}.npz"

    @staticmethod
    def _once(path: Path | None, compute: Callable[[], Arrays]) -> Arrays:
        if path is None:
            return compute()
        compute = cache(compute)
        try:
            if (found := _read(path)) is not None:  # needs no lock, so that the folder may be read-only
                return found
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f".{path.name}.lock"), str(path)):
                found = _read(path)
                if found is None:
                    if path.is_file():
                        log.warning("%s is damaged: computing it again", path)
                    found = compute()
                    _write(path, found)
                return found
        except OSError as error:
            log.warning("%s cannot be written (%s): it will be computed again", path, error.strerror or error)
            return compute()


def _read(path: Path) -> Arrays | None:
    """The arrays of a ``.npz`` file; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return read_npz(path, limit=MAX_KEPT)
    except _DAMAGE:
        return None


def _write(path: Path, arrays: Arrays) -> None:
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
