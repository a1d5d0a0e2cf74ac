"""Frechet distance between two sets of images, from the mean and covariance of their features.

    ||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

Source: Dowson and Landau 1982; for images, Heusel et al. (arXiv:1706.08500).  Statistics are summed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.data.pixels import from_uint8
from optcov.metric.base import Metric


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    Args:
        mean_1, mean_2: ``[d]``.
        covariance_1, covariance_2: symmetric positive semi-definite ``[d, d]``; singular ones are welcome.
    Returns:
        float64, 0-dimensional, not negative up to rounding.
    """
    mean_1, mean_2 = mean_1.double(), mean_2.double()
    covariance_1, covariance_2 = covariance_1.double(), covariance_2.double()
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # S_1 S_2 and root S_2 root have the same eigenvalues, and the latter is symmetric
    cross = torch.linalg.eigvalsh(root @ covariance_2 @ root).clamp(min=0).sqrt().sum()
    return ((mean_1 - mean_2) ** 2).sum() + covariance_1.trace() + covariance_2.trace() - 2 * cross  # type: ignore[no-any-return]


class Moments:
    """Running mean and covariance of features, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._outer = torch.zeros((), dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features ``[B, d]``."""
        features = features.double()
        self.count += len(features)
        self._sum = self._sum + features.sum(0)
        self._outer = self._outer + features.T @ features

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """``[d]`` and the unbiased ``[d, d]``.

        Raises:
            ValueError: if fewer than two features were added.
        """
        if self.count < 2:
            raise ValueError(f"num_samples = {self.count} has no covariance: give at least 2")
        mean = self._sum / self.count
        return mean, (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


class FrechetPixelDistance(Metric):
    """Frechet distance on raw pixels, on the scale [-1, 1]: without any network, for small images and vectors."""

    name = "fd_pixel"

    def __init__(self) -> None:
        self._real, self._fake = Moments(), Moments()

    def update(self, images: Tensor, real: bool) -> None:
        (self._real if real else self._fake).update(from_uint8(images).flatten(1))

    def compute(self) -> float:
        return float(frechet_distance(*self._fake.mean_and_covariance(), *self._real.mean_and_covariance()))
