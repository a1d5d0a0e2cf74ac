"""Guidance: steers a denoiser's predictions towards a class or a measurement, in mean and in covariance."""

from optcov.guidance.base import Guidance, GuidedPrediction
from optcov.guidance.classifier import ClassifierGuidance
from optcov.guidance.classifier_free import ClassifierFreeGuidance
from optcov.guidance.measurement import MeasurementGuidance

__all__ = ["ClassifierFreeGuidance", "ClassifierGuidance", "Guidance", "GuidedPrediction", "MeasurementGuidance"]
