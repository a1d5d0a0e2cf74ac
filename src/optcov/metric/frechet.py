"""Frechet distance between two sets of images, from the mean and covariance of their features.

    ||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

Source: Dowson and Landau 1982; for images, Heusel et al. (arXiv:1706.08500).  Statistics are summed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def frechet_distance_of_few(few: Tensor, many: Sequence[Tensor]) -> Tensor:
    """The same distance between two sets of images, for fewer of one set than dimensions.

    With centred features A of one set and B of the other, each over the root of its count less one,
    ``tr (S_1 S_2)^{1/2}`` is the sum of the singular values of ``A B^T``: nothing of size ``[d, d]`` is formed.

    Args:
        few: features ``[n, d]``, on [-1, 1], n at least 2.
        many: chunks of uint8 images ``[m_i, ...]`` of the other set; together at least 2.
    Returns:
        float64, 0-dimensional.
    """
    mean_1 = few.double().mean(0)
    a = (few.double() - mean_1) / (len(few) - 1) ** 0.5
    count = sum(map(len, many))
    mean_2 = sum((_features(chunk).sum(0) for chunk in many), torch.zeros_like(mean_1)) / count
    gram = torch.zeros(len(few), len(few), dtype=torch.float64)
    trace = torch.zeros((), dtype=torch.float64)
    for chunk in many:
        b = (_features(chunk) - mean_2) / (count - 1) ** 0.5
        product = a @ b.T
        gram += product @ product.T
        trace += (b**2).sum()
    cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    distance: Tensor = ((mean_1 - mean_2) ** 2).sum() + (a**2).sum() + trace - 2 * cross
    return distance


def _features(images: Tensor) -> Tensor:
    """float64 ``[B, d]`` on [-1, 1] of uint8 images."""
    return from_uint8(images).flatten(1).double()


class FrechetPixelDistance(Metric):
    """Frechet distance on raw pixels, on the scale [-1, 1]: without any network, for small images and vectors."""

    name = "fd_pixel"

    def __init__(self) -> None:
        self._images: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, images: Tensor, real: bool) -> None:
        self._images[real] += torch.split(images, 1024)

    def compute(self) -> float:
        few, many = sorted(self._images.values(), key=lambda chunks: sum(map(len, chunks)))
        count = sum(map(len, few))
        if count < 2:
            raise ValueError(f"num_samples = {count} has no covariance: give at least 2")
        if count < few[0][0].numel():
            return float(frechet_distance_of_few(torch.cat([_features(chunk) for chunk in few]), many))
        moments = Moments(), Moments()
        for side, chunks in zip(moments, (few, many), strict=True):
            for chunk in chunks:
                side.update(_features(chunk))
        return float(frechet_distance(*moments[0].mean_and_covariance(), *moments[1].mean_and_covariance()))
