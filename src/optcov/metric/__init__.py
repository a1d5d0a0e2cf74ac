"""Metrics that score samples, or score a model on given data."""

from optcov.metric.base import Metric, ModelMetric, Score, grey_levels, with_count
from optcov.metric.cifar_features import CIFARFeatures
from optcov.metric.features import (
    FeatureMetric,
    FeatureNetwork,
    PixelFeatures,
    TrainedFeatures,
    TwoSampleMetric,
    update_all,
)
from optcov.metric.frechet import FrechetDistance, FrechetPixelDistance, frechet_distance
from optcov.metric.inception import InceptionFeatures
from optcov.metric.inception_score import InceptionScore
from optcov.metric.kid import KernelDistance
from optcov.metric.nll import VariationalDensity, VariationalNLL
from optcov.metric.nll_ode import FlowNLL
from optcov.metric.precision_recall import PrecisionRecall
from optcov.metric.reference import Reference, Statistics
from optcov.metric.scoring import refer_all, score_samples

__all__ = [
    "CIFARFeatures",
    "FeatureMetric",
    "FeatureNetwork",
    "FlowNLL",
    "FrechetDistance",
    "FrechetPixelDistance",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "Metric",
    "ModelMetric",
    "PixelFeatures",
    "PrecisionRecall",
    "Reference",
    "Score",
    "Statistics",
    "TrainedFeatures",
    "TwoSampleMetric",
    "VariationalDensity",
    "VariationalNLL",
    "frechet_distance",
    "grey_levels",
    "refer_all",
    "score_samples",
    "update_all",
    "with_count",
]
