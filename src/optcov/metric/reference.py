"""The images that samples are compared with, and what is computed of them once and kept.

Statistics are ``.npz`` files of ``mu`` and ``sigma``, the form that other programs write and read.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from optcov.files import atomic_write
from optcov.metric.moments import Moments

if TYPE_CHECKING:
    from optcov.metric.features import FeatureNetwork

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when a change of code gives the features of a network another meaning
CHUNK = 1024  # images

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Statistics:
    """Mean ``[d]`` and covariance ``[d, d]`` of features, in float64.

    Args:
        network: :attr:`FeatureNetwork.key` of what computed the features; None where a file does not say.
        data_shape: of the images; None where a file does not say.
    """

    mean: Tensor
    covariance: Tensor
    network: str | None = None
    data_shape: tuple[int, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Statistics from a ``.npz`` file with ``mu`` and ``sigma``.

        Raises:
            ValueError: if it is missing, damaged, or holds something else.
        """
        what = "give a .npz file with the mean mu [d] and the covariance sigma [d, d] of features"
        if not path.is_file():
            raise ValueError(f"reference = {path} is no file: {what}, or null for the training images")
        arrays = _read(path)
        if arrays is None:
            raise ValueError(f"reference = {path} is damaged or no .npz of plain arrays: {what}")
        try:
            mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
            network = str(arrays["network"]) if "network" in arrays else None
            shape = tuple(map(int, arrays["data_shape"])) if "data_shape" in arrays else None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"reference = {path} holds {', '.join(arrays) or 'nothing'}: {what}") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"reference = {path} holds mu {list(mean.shape)} and sigma {list(covariance.shape)}: {what}"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(f"reference = {path} holds NaN or infinity: {what}")
        return cls(mean, covariance, network, shape)

    def arrays(self) -> Arrays:
        """What a ``.npz`` file holds of them."""
        arrays = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        origin = {"network": self.network, "data_shape": self.data_shape}
        return arrays | {name: np.array(value) for name, value in origin.items() if value is not None}


class Reference:
    """Images that samples are compared with.

    Args:
        images: uint8 ``[n, *data_shape]``; read in chunks, and may lie in a mapped file.
        folder: where statistics and features are kept, under a hash of the images and the name of the network; None to
            compute them anew.
    Raises:
        ValueError: if the images are not uint8, or fewer than 2.
    """

    def __init__(self, images: Tensor, folder: Path | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim < 2:
            raise ValueError(f"the reference is {images.dtype} {list(images.shape)}: give uint8 [n, *data_shape]")
        if len(images) < 2:
            raise ValueError(f"the reference has {len(images)} images and no covariance: give at least 2")
        self.images, self.folder = images, folder
        self.data_shape = tuple(images.shape[1:])

    @cached_property
    def digest(self) -> str:
        """A short hash of shape and pixels: what determines the images, wherever they come from."""
        digest = hashlib.sha256(str(list(self.images.shape)).encode())
        for chunk in torch.split(self.images, CHUNK):
            digest.update(chunk.contiguous().cpu().numpy().data)
        return digest.hexdigest()[:16]

    def statistics(self, network: FeatureNetwork) -> Statistics:
        """Mean and covariance of the images' features; computed by the first process that asks, in one pass."""

        def compute() -> Arrays:
            kept = self._path(network, "features")
            moments = Moments()
            for features in self._extract(network) if kept is None or not kept.is_file() else [self.features(network)]:
                moments.update(features)
            return Statistics(*moments.mean_and_covariance(), network.key, self.data_shape).arrays()

        arrays = self._once(self._path(network, "statistics"), compute)
        mean, covariance = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma"))
        return Statistics(mean, covariance, network.key, self.data_shape)

    def features(self, network: FeatureNetwork) -> Tensor:
        """The features of each image, float32 ``[n, d]`` on the CPU; computed by the first process that asks."""

        def compute() -> Arrays:
            return {"features": torch.cat([features.float().cpu() for features in self._extract(network)]).numpy()}

        return torch.from_numpy(self._once(self._path(network, "features"), compute)["features"])

    def _extract(self, network: FeatureNetwork) -> Iterator[Tensor]:
        chunks = torch.split(self.images, CHUNK)
        for chunk in tqdm(chunks, desc=f"{network.name} features of the reference", leave=False, disable=None):
            yield network(chunk)

    def _path(self, network: FeatureNetwork, what: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{network.key}-{self.digest}-{what}-{FORMAT}.npz"

    @staticmethod
    def _once(path: Path | None, compute: Callable[[], Arrays]) -> Arrays:
        if path is None:
            return compute()
        compute = cache(compute)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                found = _read(path)
                if found is None:
                    if path.is_file():
                        log.warning("%s is damaged: computing it again", path)
                    found = compute()
                    _write(path, found)
                return found
        except OSError as error:
            log.warning("%s can not be written (%s): it will be computed again", path, error.strerror or error)
            return compute()


def _read(path: Path) -> Arrays | None:
    """The arrays of a ``.npz`` file; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file) if isinstance(file, np.lib.npyio.NpzFile) else None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
