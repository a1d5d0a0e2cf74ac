"""Frechet distance between two sets of images, from the mean and covariance of their features.

    ||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

Source: Dowson and Landau 1982; for images, Heusel et al. (arXiv:1706.08500).  Statistics are summed in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from optcov.data.pixels import from_uint8
from optcov.metric.base import Score
from optcov.metric.features import FeatureMetric, FeatureNetwork, PixelFeatures
from optcov.metric.moments import Moments, covariance_root
from optcov.metric.reference import Reference, Statistics

log = logging.getLogger(__name__)


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    Args:
        mean_1, mean_2: ``[d]``.
        covariance_1, covariance_2: symmetric positive semi-definite ``[d, d]``; may be singular.
    Returns:
        float64, 0-dimensional, not negative up to rounding.
    """
    return frechet_distance_by_root(mean_1.double(), covariance_root(covariance_1.double()), mean_2, covariance_2)


def frechet_distance_by_root(mean_1: Tensor, root_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """As `frechet_distance`, with ``S_1 = root_1^T root_1``; this is cheap and exact if the rank of S_1 is small.

    Args:
        mean_1, mean_2: ``[d]``.
        root_1: ``[r, d]``, float64.
        covariance_2: symmetric positive semi-definite ``[d, d]``.
    Returns:
        float64, 0-dimensional.
    """
    mean_2, covariance_2 = mean_2.to(root_1), covariance_2.to(root_1)
    # S_1 S_2 and root S_2 root^T have the same non-zero eigenvalues, and the latter is symmetric
    cross = torch.linalg.eigvalsh(root_1 @ covariance_2 @ root_1.T).clamp(min=0).sqrt().sum()
    distance: Tensor = ((mean_1 - mean_2) ** 2).sum() + (root_1**2).sum() + covariance_2.trace() - 2 * cross
    return distance


def frechet_distance_of_few(few: Tensor, many: Sequence[Tensor]) -> Tensor:
    """The Frechet distance between two sets of images, one of which has fewer images than dimensions.

    With centred features A and B of the two sets, each divided by ``sqrt(count - 1)``, ``tr (S_1 S_2)^{1/2}`` is the
    sum of the singular values of ``A B^T``, so no ``[d, d]`` matrix is formed.

    Args:
        few: features ``[n, d]``, on [-1, 1], n at least 2.
        many: chunks of uint8 images ``[m_i, ...]`` of the other set; together at least 2.
    Returns:
        float64, 0-dimensional.
    """

    def pixels(chunk: Tensor) -> Tensor:
        return from_uint8(chunk.to(few.device)).flatten(1).double()

    mean_1 = few.double().mean(0)
    a = (few.double() - mean_1) / (len(few) - 1) ** 0.5
    count = sum(map(len, many))
    mean_2 = sum((pixels(chunk).sum(0) for chunk in many), torch.zeros_like(mean_1)) / count
    gram = a.new_zeros(len(few), len(few))
    trace = a.new_zeros(())
    for chunk in many:
        b = (pixels(chunk) - mean_2) / (count - 1) ** 0.5
        product = a @ b.T
        gram += product @ product.T
        trace += (b**2).sum()
    cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    distance: Tensor = ((mean_1 - mean_2) ** 2).sum() + (a**2).sum() + trace - 2 * cross
    return distance


class FrechetDistance(FeatureMetric[Moments]):
    """Frechet distance on the features of a network; memory does not grow with the number of samples.

    Its name is ``fid`` on Inception features and ``fd_`` with the network's name on others.

    Args:
        features: the network that computes the features.
        reference: a ``.npz`` file with ``mu`` and ``sigma`` to compare with, instead of the images given to
            `refer_to`.
    """

    def __init__(self, features: FeatureNetwork, reference: str | None = None) -> None:
        super().__init__(features)
        self.name = f"fd{features.suffix}" if features.suffix else "fid"
        self.path = None if reference is None else Path(reference).expanduser()
        self._reference: Reference | None = None
        self._statistics: Statistics | None = None
        self._warned = False

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2 (got {num_samples}): a covariance needs two images")
        if self._given is None:
            return
        dim, shape = self.features.num_features(reference.data_shape), reference.data_shape
        what = f"metric.{self.name}.reference = {self.path}"
        if len(self._given.mean) != dim or self._given.network not in (None, self.features.key):
            raise ValueError(
                f"{what} must have the {dim} features of {self.features.key} (got {len(self._given.mean)} of "
                f"{self._given.network or 'another network'}): give null for the training images"
            )
        if self._given.data_shape not in (None, shape):
            raise ValueError(
                f"{what} must be of images of shape {shape}, as the samples (got {self._given.data_shape}): "
                "give null for the training images"
            )

    def compared_with(self, training: str) -> str:
        return training if self.path is None else str(self.path)

    def refer_to(self, reference: Reference) -> None:
        self.check(reference, 2)
        super().refer_to(reference)
        self._reference, self._statistics = reference, self._given
        self.prepare()

    def prepare(self) -> Statistics:
        """Return the statistics to compare with, computing them if necessary."""
        if self._statistics is None:
            if self._reference is None:
                raise ValueError(f"{self.name} has nothing to compare samples with: call refer_to first")
            self._statistics = self._reference.statistics(self.features)
        return self._statistics

    @cached_property
    def _given(self) -> Statistics | None:
        return None if self.path is None else Statistics.read(self.path)

    def new_state(self) -> Moments:
        return Moments()

    def update_features(self, features: Tensor) -> None:
        self.state.update(features)

    def compute(self) -> dict[str, Score]:
        """Compute the distance, which few samples bias upwards; warn once if samples do not outnumber features."""
        distance = self._distance()
        count, dim = self.state.count, self.state.dim
        if count <= dim and not self._warned:
            self._warned = True
            log.warning(
                "%s of %d samples with %d features is far above its value for many samples: "
                "compare it only with scores of as many samples",
                self.name,
                count,
                dim,
            )
        details = {} if self.path is None else {"reference": str(self.path)}
        return {self.name: Score(float(distance), details=details)}

    def _distance(self) -> Tensor:
        statistics = self.prepare()
        return frechet_distance_by_root(*self.state.mean_and_root(), statistics.mean, statistics.covariance)


class FrechetPixelDistance(FrechetDistance):
    """Frechet distance on raw pixels on [-1, 1], for small images and vectors; it needs no network.

    Up to d/4 samples are compared with the reference images directly.  This is faster than forming the covariance of
    the reference, and it still works if that matrix would be too large.

    Args:
        reference: as in `FrechetDistance`.
    """

    def __init__(self, reference: str | None = None) -> None:
        super().__init__(PixelFeatures(), reference)

    def refer_to(self, reference: Reference) -> None:
        self.check(reference, 2)
        FeatureMetric.refer_to(self, reference)
        self._reference, self._statistics = reference, self._given

    def _distance(self) -> Tensor:
        rows = self.state.rows
        if rows is None or self._reference is None or self._statistics is not None:
            return super()._distance()
        if not 2 <= len(rows) <= rows.shape[1] / 4:
            return super()._distance()
        return frechet_distance_of_few(rows, torch.split(self._reference.images, 1024))
