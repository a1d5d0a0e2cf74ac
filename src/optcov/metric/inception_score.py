"""Inception score, ``exp E KL(p(y|x) || p(y))`` over the classes y of Inception-v3; it needs no reference.

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
from optcov.ranges import PositiveCount


class Tally:
    """Running sums over the samples of each split.

    Args:
        splits: number of splits.
    """

    def __init__(self, splits: int) -> None:
        self.count = 0
        self.sizes = torch.zeros(splits, dtype=torch.int64)
        self.negentropy = torch.zeros(splits, dtype=torch.float64)
        self.marginal = torch.zeros(splits, NUM_CLASSES, dtype=torch.float64)
        self._stream = np.random.default_rng(0)
        self._dealt = torch.zeros(0, dtype=torch.int64)  # splits already assigned to samples still to come

    def add(self, log_p: Tensor) -> None:
        """Add samples with the log-probabilities ``[B, 1008]`` of their classes, float64."""
        split = self._deal(len(log_p))
        self.count += len(log_p)
        self.sizes += split.bincount(minlength=len(self.sizes))
        self.negentropy.index_add_(0, split, (log_p.exp() * log_p).sum(1))
        self.marginal.index_add_(0, split, log_p.exp())

    def _deal(self, count: int) -> Tensor:
        """Deal a split to each of the next samples, int64 ``[count]``."""
        splits = len(self.sizes)
        rounds = -(-(count - len(self._dealt)) // splits)
        more = self._stream.random((rounds, splits)).argsort(1)  # the same sequence for every batch size
        dealt = torch.cat([self._dealt, torch.from_numpy(more).flatten()])
        self._dealt = dealt[count:]
        return dealt[:count]


class InceptionScore(FeatureMetric[Tally]):
    """The mean score over splits of the samples; memory use is constant.

    Of every ``splits`` consecutive samples, one goes into each split, in an order drawn with a fixed seed.  Splits
    therefore do not depend on whether samples are ordered by class, and sample i is in the same split for every batch
    size.  The score's details contain the standard deviation over the splits.

    Args:
        features: the features of Inception-v3.
        splits: number of splits, at least 1.
    Raises:
        ValueError: if ``splits`` is below 1.
    """

    name = "inception_score"
    higher_is_better = True

    def __init__(self, features: InceptionFeatures, splits: PositiveCount = 10) -> None:
        super().__init__(features)
        if splits < 1:
            raise ValueError(f"metric.{self.name}.splits must be at least 1 (got {splits}): give 10, as published")
        self.splits, self.inception = splits, features

    def check(self, reference: Reference, num_samples: int) -> None:
        super().check(reference, num_samples)
        self._refuse_few(num_samples)

    def compared_with(self, training: str) -> None:
        return None

    def new_state(self) -> Tally:
        return Tally(self.splits)

    def update_features(self, features: Tensor) -> None:
        self.state.add(self.inception.logits(features).double().log_softmax(1).cpu())

    def compute(self) -> dict[str, Score]:
        tally = self.state
        self._refuse_few(tally.count)
        marginal = tally.marginal / tally.sizes[:, None]
        scores = (tally.negentropy / tally.sizes - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        if not scores.isfinite().all():
            raise ValueError(f"features of {tally.count} images are not all finite: look at the images")
        details = {"standard_deviation": float(scores.std(correction=0)), "splits": self.splits}
        return {self.name: Score(float(scores.mean()), details=details)}

    def _refuse_few(self, num_samples: int) -> None:
        if num_samples < self.splits:
            raise ValueError(
                f"metric.{self.name}.splits must be at most num_samples = {num_samples} (got {self.splits}): give fewer"
            )
