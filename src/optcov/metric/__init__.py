"""Metrics: of samples, and of a model on data."""

from optcov.metric.base import Metric, ModelMetric, Score, with_count
from optcov.metric.frechet import FrechetPixelDistance, frechet_distance
from optcov.metric.nll import VariationalNLL

__all__ = [
    "FrechetPixelDistance",
    "Metric",
    "ModelMetric",
    "Score",
    "VariationalNLL",
    "frechet_distance",
    "with_count",
]
