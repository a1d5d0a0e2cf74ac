"""Improved precision and recall: how many samples look real, and how much of the real there is among the samples.

A set's manifold is the union of balls around its features, each as wide as the distance to its k-th nearest neighbour.
Precision is the share of samples on the manifold of the reference, recall that of the reference on the manifold of the
samples.

Source: Kynkaanniemi et al. (arXiv:1904.06991), Eq. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.metric.base import Score
from optcov.metric.features import FeatureMetric, FeatureNetwork
from optcov.metric.reference import Reference

CHUNK = 1024  # rows of a table of distances


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of features.

    Args:
        real: of the reference, ``[m, d]``, m above k.
        fake: of the samples, ``[n, d]``, n above k; on the same device.
        k: which neighbour.
    Returns:
        Two shares in [0, 1].
    """
    return _share_within(fake, real, _radii(real, k)), _share_within(real, fake, _radii(fake, k))


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance ``[n]`` of each point to its k-th neighbour, which it is not itself."""
    radii = []
    for first in range(0, len(points), CHUNK):
        distances = torch.cdist(points[first : first + CHUNK], points)
        rows = torch.arange(len(distances), device=points.device)
        distances[rows, first + rows] = torch.inf
        radii.append(distances.kthvalue(k).values)
    return torch.cat(radii)


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    within = [(torch.cdist(chunk, centres) <= radii).any(1) for chunk in torch.split(points, CHUNK)]
    return float(torch.cat(within).double().mean())


class PrecisionRecall(FeatureMetric):
    """Precision and recall on the features of a network; it keeps all features, its time grows with their square.

    The published numbers are on features of a VGG-16, so that those on Inception features (as Dhariwal and Nichol
    report, arXiv:2105.05233) compare among themselves alone.

    Args:
        features: what computes them.
        k: which neighbour gives a ball its radius; 3 as published.
    """

    higher_is_better = True

    def __init__(self, features: FeatureNetwork, k: int = 3) -> None:
        super().__init__(features)
        self.name = f"precision_recall{features.suffix}"
        if k < 1:
            raise ValueError(f"metric.{self.name}.k = {k} is no neighbour: give at least 1")
        self.k = k
        self._real: Tensor | None = None

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        for count, what in ((num_samples, "samples"), (len(reference.images), "images of the reference")):
            if count <= self.k:
                raise ValueError(f"metric.{self.name}.k = {self.k} leaves {count} {what} no neighbour: give fewer")

    def refer_to(self, reference: Reference) -> None:
        super().refer_to(reference)
        self._real = reference.features(self.features)

    def update_features(self, features: Tensor) -> None:
        self._fake.append(features.float().cpu())

    def compute(self) -> dict[str, Score]:
        if self._real is None:
            raise ValueError(f"{self.name} has nothing to compare samples with: call refer_to first")
        count = sum(map(len, self._fake))
        if min(count, len(self._real)) <= self.k:
            raise ValueError(f"metric.{self.name}.k = {self.k} leaves {count} samples no neighbour: give fewer")
        device = self.features.device
        precision, recall = precision_recall(self._real.to(device), torch.cat(self._fake).to(device), self.k)
        suffix = self.features.suffix
        return {f"precision{suffix}": Score(precision), f"recall{suffix}": Score(recall)}

    def reset(self) -> None:
        self._fake: list[Tensor] = []
