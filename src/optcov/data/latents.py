"""Latents of images: encoded to disk once, modelled as latents, and decoded so that samples are kept as pixels.

Latent diffusion (arXiv:2112.10752) models ``z = scale E(x)``.  The support of z is unknown, so predictions of z are not
clipped, and the only bound on a covariance is that it is not negative.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optcov.checkpoint import digest_of
from optcov.data.autoencoder import Autoencoder, autoencoder_of
from optcov.data.base import DataSource, Split
from optcov.data.cache import PixelCache, StoredImages
from optcov.data.pixels import to_uint8
from optcov.data.records import Records
from optcov.data_range import DataRange
from optcov.wording import first_line

CHUNK = 64  # images that are encoded or decoded at once


@dataclass(eq=False)
class LatentData(DataSource):
    """The latents of a source of images.

    Args:
        source: the images, a source of uint8.
        autoencoder: a folder of diffusers (``AutoencoderKL``, or a pipeline with one as its ``vae``), one of its
            modules, an object with ``encode`` and ``decode``, or a pair of callables.
        cache_dir: folder in which latents are kept.
        scale: factor by which latents are multiplied; None for the ``scaling_factor`` of the autoencoder's config.
        batch_size, seed: as in `DataSource`.
    Raises:
        ValueError: if the autoencoder cannot be loaded, or ``random_flip`` is set, because a mirrored latent is not the
            latent of the mirrored image.
    """

    source: DataSource
    autoencoder: Any
    cache_dir: str
    _: KW_ONLY
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_flip:
            raise ValueError("data.random_flip must be false for latents (got True): mirror the images of data.source")
        self.cache = PixelCache(Path(self.cache_dir).expanduser())
        self.model: Autoencoder = autoencoder_of(self.autoencoder, self.scale)
        self._stored: dict[Split, StoredImages] = {}

    @property
    def data_range(self) -> DataRange:
        return DataRange(None, None, None)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.source.sample_shape

    def reference(self) -> Tensor:
        return self.source.reference()

    def labels(self, split: Split) -> Tensor:
        return self.source.labels(split)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def load(self, split: Split) -> Tensor:
        return self.stored(split).images

    def identity(self) -> dict[str, Any]:
        return {"train_sha256": self.stored("train").manifest["sha256"], "autoencoder": self._digest}

    def finish(self, x_0: Tensor) -> Tensor:
        """Decode samples to images, uint8."""
        return to_uint8(self.decode(x_0))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: float on [-1, 1], ``[B, C, H, W]``, on any device.
        Returns:
            float32 ``[B, *data_shape]``, on the same device.
        Raises:
            ValueError: if the autoencoder cannot encode such images, or a latent is not finite.
        """
        model = self.model.to(images.device)
        try:
            latents = torch.cat([model.encode(chunk).float() for chunk in torch.split(images, CHUNK)])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"data.autoencoder cannot encode images of shape {list(images.shape[1:])} "
                f"({first_line(error)}): give one for such images, or another data.source"
            ) from error
        if latents.ndim != 4 or len(latents) != len(images) or not latents.isfinite().all():
            raise ValueError(
                f"data.autoencoder must give finite latents [B, c, h, w] (got {list(latents.shape)}): give another one"
            )
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images, float32, nominally on [-1, 1], ``[B, *sample_shape]``."""
        if not latents.isfinite().all():
            to_uint8(latents)  # raises the error that says so
        model = self.model.to(latents.device)
        return torch.cat([model.decode(chunk.float()).float() for chunk in torch.split(latents, CHUNK)])

    def stored(self, split: Split) -> StoredImages:
        """The latents of a split in the cache; the first process that asks for them encodes them.

        Raises:
            ValueError: if they cannot be computed or stored.
        """
        if split not in self._stored:
            images = self.source.load(split)
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError("data.source must be images (got vectors or tensors): give cifar10, say")
            shape = self._shape  # raises if the autoencoder does not give the images back
            identity = {"images": _identity(self.source, split, images), "autoencoder": self._digest}
            name = f"{getattr(self.source, 'name', type(self.source).__name__)}-latents-{split}"
            self._stored[split] = self.cache.open_or_build(
                name,
                identity,
                f"{type(self.source).__name__} through {self.autoencoder}",
                lambda: Encoded(self, images),
                shape,
                dtype=np.float32,
            )
        return self._stored[split]

    @cached_property
    def _probe(self) -> Tensor:
        """A few images, with which the autoencoder is tried."""
        return self.source.normalize(self.source.train[:2]).to(_device())

    @cached_property
    def _digest(self) -> str:
        with torch.no_grad():
            return self.model.to(self._probe.device).digest(self._probe)

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.encode(self._probe).shape[1:]
        decoded = self.decode(self.encode(self._probe)).shape[1:]
        if tuple(decoded) != self.source.data_shape:
            raise ValueError(
                f"data.autoencoder must give images of shape {list(self.source.data_shape)} back "
                f"(got {list(decoded)}): give one for such images, or another data.source"
            )
        return channels, height, width


class Encoded(Records):
    """The latents of images, encoded a chunk at a time.

    Args:
        data: the latents' source, whose autoencoder is used.
        images: uint8 ``[n, C, H, W]``.
    """

    def __init__(self, data: LatentData, images: Tensor) -> None:
        self.data, self.images = data, images
        self._chunk: tuple[int, NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[Any]:
        first = index - index % CHUNK
        if self._chunk is None or self._chunk[0] != first:
            batch = self.data.source.normalize(self.images[first : first + CHUNK].to(_device()))
            self._chunk = first, self.data.encode(batch).cpu().numpy()
        latent: NDArray[np.float32] = self._chunk[1][index - first]
        return latent


def _identity(source: DataSource, split: Split, images: Tensor) -> str:
    """Identify the images by the checksum of their cache entry, or else of the images themselves."""
    stored = getattr(source, "stored", None)
    if stored is not None:
        return str(stored(split).manifest["sha256"])
    return digest_of({"images": images.contiguous()})


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
