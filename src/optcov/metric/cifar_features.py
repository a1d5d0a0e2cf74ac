"""Features of the CIFAR-10 classifier that ships with the package."""

from __future__ import annotations

import hashlib

from torch import Tensor
from torch.nn import functional as F

from optcov.metric.cifar_classifier import WEIGHTS, CIFARClassifier, load_cifar_classifier
from optcov.metric.features import TrainedFeatures
from optcov.ranges import Batch

SIZE = 32  # pixels


class CIFARFeatures(TrainedFeatures[CIFARClassifier]):
    """192 features that need no download; compare such scores with one another, but not with published FIDs.

    Images of another size are resized to 32 x 32 (bilinear, antialiased); a grey channel is repeated three times.

    Args:
        batch_size: images per network call.
    """

    name = "cifar"
    dim = 192

    def __init__(self, batch_size: Batch = 256) -> None:
        super().__init__(batch_size)
        self._key = f"{self.name}-{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:8]}"

    @property
    def key(self) -> str:
        return self._key

    def load(self) -> CIFARClassifier:
        return load_cifar_classifier()

    def extract(self, images: Tensor) -> Tensor:
        x = self.colour(images) / 255
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.network.features(x)
