"""Features of images, and metrics of the features of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from optcov.data.pixels import from_uint8
from optcov.metric.base import Metric, grey_levels
from optcov.metric.reference import Reference

Network = TypeVar("Network", bound=nn.Module)


class FeatureNetwork(ABC):
    """Features of images, computed in batches on one device, in float32 and without gradients.

    Args:
        batch_size: images at once.
    Attributes:
        device: where; the CPU until :meth:`to` is called.
    """

    name: ClassVar[str]

    def __init__(self, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"features.batch_size = {batch_size} computes nothing: give at least 1")
        self.batch_size, self.device = batch_size, torch.device("cpu")

    @property
    def suffix(self) -> str:
        """What is added to the name of a metric on these features; nothing for those of the published metrics."""
        return f"_{self.name}"

    @property
    def key(self) -> str:
        """Name and weights: what determines the features of an image; fit for the name of a file."""
        return self.name

    @abstractmethod
    def num_features(self, data_shape: tuple[int, ...]) -> int:
        """How many features an image has.

        Raises:
            ValueError: if images of this shape have none.
        """

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """Features ``[B, d]`` of a batch of uint8 ``[B, *data_shape]`` on :attr:`device`."""

    def to(self, device: torch.device | str) -> Self:
        """Compute there."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[n, d]``, on :attr:`device`, of uint8 ``[n, *data_shape]`` on any."""
        with torch.autocast(self.device.type, enabled=False):
            batches = torch.split(images, self.batch_size)
            return torch.cat([self.extract(batch.to(self.device)) for batch in batches])


class PixelFeatures(FeatureNetwork):
    """The pixels themselves, on [-1, 1]: no network."""

    name = "pixel"

    def __init__(self) -> None:
        super().__init__(batch_size=1024)

    def num_features(self, data_shape: tuple[int, ...]) -> int:
        return torch.Size(data_shape).numel()

    def extract(self, images: Tensor) -> Tensor:
        return from_uint8(images).flatten(1)


class TrainedFeatures(FeatureNetwork, Generic[Network]):
    """Features of a trained network for colour images of any size; a grey channel is shown three times.

    Args:
        batch_size: images at once.
    """

    dim: ClassVar[int]

    @abstractmethod
    def load(self) -> Network:
        """The network, on the CPU, in eval mode."""

    @cached_property
    def network(self) -> Network:
        """The network on :attr:`device`, loaded when it is first used."""
        return self.load().to(self.device).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        if "network" in self.__dict__:
            self.network.to(self.device)
        return self

    def num_features(self, data_shape: tuple[int, ...]) -> int:
        if len(data_shape) != 3 or data_shape[0] not in (1, 3):
            raise ValueError(
                f"{self.name} features are those of images with 1 or 3 channels, not of data of shape {data_shape}: "
                "choose metric=fd_pixel"
            )
        return self.dim

    @staticmethod
    def colour(images: Tensor) -> Tensor:
        """float32 ``[B, 3, H, W]``, in 0..255, of uint8 ``[B, 1 or 3, H, W]``."""
        return images.float().expand(-1, 3, -1, -1)


class FeatureMetric(Metric):
    """A metric that looks at features of samples alone.

    Args:
        features: what computes them.
    """

    def __init__(self, features: FeatureNetwork) -> None:
        self.features = features
        self.data_shape: tuple[int, ...] | None = None
        self.reset()

    def check(self, reference: Reference, num_samples: int) -> None:
        self.features.num_features(reference.data_shape)

    def to(self, device: torch.device | str) -> Self:
        self.features.to(device)
        return self

    def refer_to(self, reference: Reference) -> None:
        self.features.num_features(reference.data_shape)
        self.data_shape = reference.data_shape

    def update(self, images: Tensor) -> None:
        update_all([self], images)

    @abstractmethod
    def update_features(self, features: Tensor) -> None:
        """Add the features ``[B, d]`` of samples."""


def update_all(metrics: Iterable[Metric], images: Tensor) -> None:
    """Add samples to several metrics; features that several want are computed once.

    Args:
        metrics: on one device.
        images: as in :meth:`Metric.update`.
    Raises:
        ValueError: as :meth:`Metric.update` does.
    """
    images = grey_levels(images)
    computed: dict[str, Tensor] = {}
    for metric in metrics:
        if not isinstance(metric, FeatureMetric):
            metric.update(images)
            continue
        shape = tuple(images.shape[1:])
        if metric.data_shape is not None and shape != metric.data_shape:
            raise ValueError(f"samples of shape {shape} do not compare with a reference of shape {metric.data_shape}")
        key = metric.features.key
        if key not in computed:
            metric.features.num_features(shape)
            computed[key] = metric.features(images)
        metric.update_features(computed[key])
