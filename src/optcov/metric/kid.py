"""Kernel inception distance: the unbiased squared MMD of features under the kernel ``(x^T y / d + 1)^3``.

Source: Binkowski et al. (arXiv:1801.01401).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.metric.base import Score
from optcov.metric.features import FeatureMetric, FeatureNetwork
from optcov.metric.reference import Reference


class KernelDistance(FeatureMetric):
    """Mean over random subsets of the squared MMD; unlike Frechet distances unbiased, but it keeps all features.

    Its name is ``kid`` on Inception features, ``kid_`` with the network's name on others.  The subsets are drawn with a
    fixed seed; the standard deviation over them is in the score's details.

    Args:
        features: what computes them.
        subsets: how many.
        subset_size: samples, and as many of the reference, in each.
    """

    def __init__(self, features: FeatureNetwork, subsets: int = 100, subset_size: int = 1000) -> None:
        super().__init__(features)
        self.name = f"kid{features.suffix}"
        if subsets < 2:
            raise ValueError(f"metric.{self.name}.subsets = {subsets} has no standard deviation: give at least 2")
        if subset_size < 2:
            raise ValueError(f"metric.{self.name}.subset_size = {subset_size} has no MMD: give at least 2")
        self.subsets, self.subset_size = subsets, subset_size
        self._real: Tensor | None = None

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        for count, what in ((num_samples, "samples"), (len(reference.images), "images of the reference")):
            if count < self.subset_size:
                raise ValueError(
                    f"metric.{self.name}.subset_size = {self.subset_size} is more than the {count} {what}: give fewer"
                )

    def refer_to(self, reference: Reference) -> None:
        super().refer_to(reference)
        self._real = reference.features(self.features)

    def update_features(self, features: Tensor) -> None:
        self._fake.append(features.float().cpu())

    def compute(self) -> dict[str, Score]:
        from torchmetrics.image.kid import poly_mmd

        if self._real is None:
            raise ValueError(f"{self.name} has nothing to compare samples with: call refer_to first")
        sets = [self._real, torch.cat(self._fake) if self._fake else self._real[:0]]
        if min(map(len, sets)) < self.subset_size:
            raise ValueError(
                f"metric.{self.name}.subset_size = {self.subset_size} is more than the {len(sets[1])} samples or the "
                f"{len(sets[0])} images of the reference: give fewer"
            )
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(self.subsets):
            chosen = (each[torch.randperm(len(each), generator=generator)[: self.subset_size]] for each in sets)
            real, fake = (each.to(self.features.device, torch.float64) for each in chosen)
            found.append(poly_mmd(real, fake))
        values = torch.stack(found)
        details = {
            "standard_deviation": float(values.std()),
            "subsets": self.subsets,
            "subset_size": self.subset_size,
        }
        return {self.name: Score(float(values.mean()), details=details)}

    def reset(self) -> None:
        self._fake: list[Tensor] = []
