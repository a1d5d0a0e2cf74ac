"""Scores one set of samples by several metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from optcov.metric.base import Metric, Score, with_count
from optcov.metric.features import update_all
from optcov.metric.frechet import FrechetDistance
from optcov.metric.reference import Reference


def refer_all(metrics: Iterable[Metric], reference: Reference, device: torch.device) -> None:
    """Set the images with which all metrics compare samples, on a device.

    Raises:
        ValueError: if they cannot serve as a reference.
    """
    # a Frechet distance computes its statistics from features that other metrics have cached
    for metric in sorted(metrics, key=lambda metric: isinstance(metric, FrechetDistance)):
        metric.to(device).refer_to(reference)


def score_samples(
    metrics: Sequence[Metric], chunks: Iterable[Tensor], count: int
) -> Iterator[tuple[Metric, str, Score]]:
    """Score samples; features that several metrics share are computed only once.

    Args:
        metrics: metrics that have their references; see `refer_all`.
        chunks: all samples in order, each chunk ``[b, *sample_shape]`` as in `Metric.update`.
        count: total number of samples.
    Yields:
        Each score with its metric, and its name with the number of samples.
    Raises:
        ValueError: if the number of samples differs from ``count``, or they cannot be scored.
    """
    for metric in metrics:
        metric.reset()
    seen = 0
    for chunk in chunks:
        update_all(metrics, chunk)
        seen += len(chunk)
    if seen != count:
        raise ValueError(f"samples must be num_samples = {count} in number (got {seen}): run the command again")
    for metric in metrics:
        for name, score in metric.compute().items():
            yield metric, with_count(name, count), score
