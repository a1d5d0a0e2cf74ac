"""Features of images, and the base classes of metrics that depend on samples only through features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from optcov.data.pixels import from_uint8
from optcov.metric.base import Metric, Score, grey_levels
from optcov.metric.reference import Reference
from optcov.ranges import Batch

Network = TypeVar("Network", bound=nn.Module)
State = TypeVar("State")


class FeatureNetwork(ABC):
    """Computes features of images in batches on one device, in float32 and without gradients.

    Args:
        batch_size: images per network call.
    Attributes:
        device: where features are computed; the CPU until `to` is called.
    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    name: ClassVar[str]

    def __init__(self, batch_size: Batch = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"features.batch_size must be at least 1 (got {batch_size}): give 64")
        self.batch_size, self.device = batch_size, torch.device("cpu")

    @property
    def suffix(self) -> str:
        """A suffix for the names of metrics on these features; empty for the features that published metrics use."""
        return f"_{self.name}"

    @property
    def key(self) -> str:
        """Identifies the network and its weights, which determine an image's features; usable in a file name."""
        return self.name

    @abstractmethod
    def num_features(self, data_shape: tuple[int, ...]) -> int:
        """The number of features of an image.

        Raises:
            ValueError: if images of this shape have none.
        """

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """Compute features ``[B, d]`` of a batch of uint8 images ``[B, *data_shape]`` on `device`."""

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute features ``[n, d]`` on `device` from uint8 images ``[n, *data_shape]`` on any device."""
        with torch.autocast(self.device.type, enabled=False):
            batches = torch.split(images, self.batch_size)
            return torch.cat([self.extract(batch.to(self.device)) for batch in batches])


class PixelFeatures(FeatureNetwork):
    """The pixels themselves, on [-1, 1], without a network."""

    name = "pixel"

    def __init__(self) -> None:
        super().__init__(batch_size=1024)

    def num_features(self, data_shape: tuple[int, ...]) -> int:
        return torch.Size(data_shape).numel()

    def extract(self, images: Tensor) -> Tensor:
        return from_uint8(images).flatten(1)


class TrainedFeatures(FeatureNetwork, Generic[Network]):
    """Features of a trained network for colour images of any size; a grey channel is repeated three times.

    Args:
        batch_size: images per network call.
    """

    dim: ClassVar[int]

    @abstractmethod
    def load(self) -> Network:
        """Load the network, on the CPU, in eval mode."""

    @cached_property
    def network(self) -> Network:
        """The network on `device`, loaded on first use."""
        return self.load().to(self.device).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        if "network" in self.__dict__:
            self.network.to(self.device)
        return self

    def num_features(self, data_shape: tuple[int, ...]) -> int:
        if len(data_shape) != 3 or data_shape[0] not in (1, 3):
            raise ValueError(
                f"{self.name} features need images with 1 or 3 channels (got data of shape {data_shape}): "
                "choose metric=fd_pixel"
            )
        return self.dim

    @staticmethod
    def colour(images: Tensor) -> Tensor:
        """Convert uint8 ``[B, 1 or 3, H, W]`` to float32 ``[B, 3, H, W]`` in 0..255."""
        return images.float().expand(-1, 3, -1, -1)


class FeatureMetric(Metric, Generic[State]):
    """A metric that depends on samples only through their features.

    A single object holds everything accumulated.  `new_state` makes it when the first samples arrive after construction
    or a reset, and therefore never before the ``__init__`` of a subclass has finished.

    Args:
        features: the network that computes the features.
    """

    def __init__(self, features: FeatureNetwork) -> None:
        self.features = features
        self.data_shape: tuple[int, ...] | None = None

    @abstractmethod
    def new_state(self) -> State:
        """Make the state of a metric that has seen no samples."""

    @cached_property
    def state(self) -> State:
        """Everything accumulated since the last reset."""
        return self.new_state()

    def reset(self) -> None:
        self.__dict__.pop("state", None)

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
        """Add the features ``[B, d]`` of samples to `state`."""


class TwoSampleMetric(FeatureMetric[list[Tensor]]):
    """A metric that compares all features of the samples with all features of the reference, and keeps both."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__(features)
        self._real: Tensor | None = None

    @abstractmethod
    def check_count(self, count: int, what: str) -> None:
        """Refuse a count that is too small.

        Args:
            count: number of samples or of images of the reference.
            what: which of the two the message names: "samples" or "images of the reference".
        Raises:
            ValueError: if the count is too small; the message names the setting that needs more.
        """

    @abstractmethod
    def compare(self, real: Tensor, fake: Tensor) -> dict[str, Score]:
        """Compare features ``[m, d]`` of the reference with features ``[n, d]`` of samples, both on the CPU."""

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        self._check_counts(num_samples, len(reference.images))

    def refer_to(self, reference: Reference) -> None:
        super().refer_to(reference)
        self._real = reference.features(self.features)

    def new_state(self) -> list[Tensor]:
        return []

    def update_features(self, features: Tensor) -> None:
        self.state.append(features.float().cpu())

    def compute(self) -> dict[str, Score]:
        if self._real is None:
            raise ValueError(f"{self.name} has nothing to compare samples with: call refer_to first")
        fake = torch.cat([self._real[:0], *self.state])
        self._check_counts(len(fake), len(self._real))
        return self.compare(self._real, fake)

    def _check_counts(self, num_samples: int, num_reference: int) -> None:
        self.check_count(num_samples, "samples")
        self.check_count(num_reference, "images of the reference")


def update_all(metrics: Iterable[Metric], images: Tensor) -> None:
    """Add samples to several metrics; features that several of them share are computed only once.

    Args:
        metrics: all on the same device.
        images: as in `Metric.update`.
    Raises:
        ValueError: in the same cases as `Metric.update`.
    """
    images = grey_levels(images)
    computed: dict[str, Tensor] = {}
    for metric in metrics:
        if not isinstance(metric, FeatureMetric):
            metric.update(images)
            continue
        shape = tuple(images.shape[1:])
        if metric.data_shape is not None and shape != metric.data_shape:
            raise ValueError(f"samples must have the shape {metric.data_shape} of the reference (got {shape})")
        key = metric.features.key
        if key not in computed:
            metric.features.num_features(shape)
            computed[key] = metric.features(images)
        metric.update_features(computed[key])
