"""Metrics: of samples, and of a model on data."""

from optcov.metric.base import Metric, ModelMetric, Score, with_count
from optcov.metric.frechet import FrechetPixelDistance, frechet_distance
from optcov.metric.nll import VariationalNLL
from optcov.metric.nll_ode import FlowNLL

__all__ = [
    "FlowNLL",
    "FrechetPixelDistance",
    "Metric",
    "ModelMetric",
    "Score",
    "VariationalNLL",
    "frechet_distance",
    "with_count",
]
