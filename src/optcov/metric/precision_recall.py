"""Improved precision and recall: how many samples look real, and how much of the reference the samples cover.

The manifold of a set is the union of balls around its features; the radius of each ball is the distance to the k-th
nearest neighbour.  Precision is the share of samples on the manifold of the reference, recall the share of the
reference on the manifold of the samples.

Source: Kynkaanniemi et al. (arXiv:1904.06991), Eq. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.metric.base import Score
from optcov.metric.features import FeatureNetwork, TwoSampleMetric
from optcov.ranges import PositiveCount

CHUNK = 1024  # rows of the distance table computed at once


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of features.

    Args:
        real: features of the reference, ``[m, d]``, m above k.
        fake: features of the samples, ``[n, d]``, n above k; on the same device.
        k: which neighbour determines the radius of a ball.
    Returns:
        Precision and recall, each in [0, 1].
    """
    return _share_within(fake, real, _radii(real, k)), _share_within(real, fake, _radii(fake, k))


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance ``[n]`` of each point to its k-th nearest other point."""
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


class PrecisionRecall(TwoSampleMetric):
    """Precision and recall on the features of a network; stores all features and takes time quadratic in their number.

    The original numbers use features of a VGG-16.  Numbers on Inception features (as in Dhariwal and Nichol,
    arXiv:2105.05233) are comparable only with one another.

    Args:
        features: the network that computes the features.
        k: which neighbour determines the radius of a ball, at least 1; 3 as published.
    Raises:
        ValueError: if ``k`` is below 1.
    """

    higher_is_better = True

    def __init__(self, features: FeatureNetwork, k: PositiveCount = 3) -> None:
        super().__init__(features)
        self.name = f"precision_recall{features.suffix}"
        if k < 1:
            raise ValueError(f"metric.{self.name}.k must be at least 1 (got {k}): give 3, as published")
        self.k = k

    def check_count(self, count: int, what: str) -> None:
        if count <= self.k:
            raise ValueError(
                f"metric.{self.name}.k must be below the number of {what}, {count} (got {self.k}): give less"
            )

    def compare(self, real: Tensor, fake: Tensor) -> dict[str, Score]:
        device, suffix = self.features.device, self.features.suffix
        precision, recall = precision_recall(real.to(device), fake.to(device), self.k)
        return {f"precision{suffix}": Score(precision), f"recall{suffix}": Score(recall)}
