"""Kernel inception distance: the unbiased squared MMD of features with the kernel ``(x^T y / d + 1)^3``.

Source: Binkowski et al. (arXiv:1801.01401).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.metric.base import Score
from optcov.metric.features import FeatureNetwork, TwoSampleMetric
from optcov.ranges import PositiveCount


class KernelDistance(TwoSampleMetric):
    """Mean squared MMD over random subsets; unlike a Frechet distance it is unbiased, but it stores all features.

    Its name is ``kid`` on Inception features, and ``kid_`` with the network's name on others.  The subsets are drawn
    with a fixed seed; the score's details contain the standard deviation over them.

    Args:
        features: the network that computes the features.
        subsets: number of subsets, at least 2.
        subset_size: number of samples, and of reference images, in each subset; at least 2.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, features: FeatureNetwork, subsets: PositiveCount = 100, subset_size: PositiveCount = 1000
    ) -> None:
        super().__init__(features)
        self.name = f"kid{features.suffix}"
        for key, value in (("subsets", subsets), ("subset_size", subset_size)):
            if value < 2:
                raise ValueError(f"metric.{self.name}.{key} must be at least 2 (got {value}): give 100 or more")
        self.subsets, self.subset_size = subsets, subset_size

    def check_count(self, count: int, what: str) -> None:
        if count < self.subset_size:
            raise ValueError(
                f"metric.{self.name}.subset_size must be at most the number of {what}, {count} (got "
                f"{self.subset_size}): give less"
            )

    def compare(self, real: Tensor, fake: Tensor) -> dict[str, Score]:
        from torchmetrics.image.kid import poly_mmd

        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(self.subsets):
            chosen = (each[torch.randperm(len(each), generator=generator)[: self.subset_size]] for each in (real, fake))
            real_subset, fake_subset = (each.to(self.features.device, torch.float64) for each in chosen)
            found.append(poly_mmd(real_subset, fake_subset))
        values = torch.stack(found)
        details = {
            "standard_deviation": float(values.std()),
            "subsets": self.subsets,
            "subset_size": self.subset_size,
        }
        return {self.name: Score(float(values.mean()), details=details)}
