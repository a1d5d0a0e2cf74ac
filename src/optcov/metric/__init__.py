"""Metrics of sample quality."""

from optcov.metric.base import Metric, with_count
from optcov.metric.frechet import FrechetPixelDistance, frechet_distance

__all__ = ["FrechetPixelDistance", "Metric", "frechet_distance", "with_count"]
