"""Inception score, ``exp E KL(p(y|x) || p(y))`` for the classes y of Inception-v3; it looks at no reference.

Source: Salimans et al. (arXiv:1606.03498), Section 4.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optcov.metric.base import Score
from optcov.metric.features import FeatureMetric
from optcov.metric.inception import NUM_CLASSES, InceptionFeatures
from optcov.metric.reference import Reference


class InceptionScore(FeatureMetric):
    """Mean over splits of the samples; constant memory.

    Of each ``splits`` samples in a row one is in each split, in an order drawn with a fixed seed: a split has nothing
    to do with where its samples stand, as their classes may have, and sample i is in the same one in any batch.

    The standard deviation over the splits is in the score's details.

    Args:
        features: Inception-v3.
        splits: how many.
    """

    name = "inception_score"
    higher_is_better = True

    def __init__(self, features: InceptionFeatures, splits: int = 10) -> None:
        if splits < 1:
            raise ValueError(f"metric.{self.name}.splits = {splits} leaves no samples: give at least 1")
        self.splits, self.inception = splits, features
        super().__init__(features)

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        if num_samples < self.splits:
            raise ValueError(
                f"metric.{self.name}.splits = {self.splits} is more than num_samples = {num_samples}: give fewer"
            )

    def compared_with(self, training: str) -> None:
        return None

    def update_features(self, features: Tensor) -> None:
        log_p = self.inception.logits(features).double().log_softmax(1).cpu()
        split = self._deal(len(log_p))
        self._count += len(log_p)
        self._sizes += split.bincount(minlength=self.splits)
        self._negentropy.index_add_(0, split, (log_p.exp() * log_p).sum(1))
        self._marginal.index_add_(0, split, log_p.exp())

    def compute(self) -> dict[str, Score]:
        if self._count < self.splits:
            raise ValueError(
                f"metric.{self.name}.splits = {self.splits} is more than num_samples = {self._count}: give fewer"
            )
        marginal = self._marginal / self._sizes[:, None]
        scores = (self._negentropy / self._sizes - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        if not scores.isfinite().all():
            raise ValueError(f"the features of {self._count} images are not all finite: look at the images")
        details = {"standard_deviation": float(scores.std(correction=0)), "splits": self.splits}
        return {self.name: Score(float(scores.mean()), details=details)}

    def reset(self) -> None:
        self._count = 0
        self._stream = np.random.default_rng(0)
        self._dealt = torch.zeros(0, dtype=torch.int64)  # to samples that are still to come
        self._sizes = torch.zeros(self.splits, dtype=torch.int64)
        self._negentropy = torch.zeros(self.splits, dtype=torch.float64)
        self._marginal = torch.zeros(self.splits, NUM_CLASSES, dtype=torch.float64)

    def _deal(self, count: int) -> Tensor:
        """The split of each of the next samples, int64 ``[count]``."""
        rounds = -(-(count - len(self._dealt)) // self.splits)
        more = self._stream.random((rounds, self.splits)).argsort(1)  # numbers one after the other, however many
        dealt = torch.cat([self._dealt, torch.from_numpy(more).flatten()])
        self._dealt = dealt[count:]
        return dealt[:count]
