"""Guidance: steers a denoiser's predictions towards a requested class, in mean and in covariance."""

from optcov.guidance.base import Guidance, GuidedPrediction
from optcov.guidance.classifier import ClassifierGuidance
from optcov.guidance.classifier_free import ClassifierFreeGuidance

__all__ = ["ClassifierFreeGuidance", "ClassifierGuidance", "Guidance", "GuidedPrediction"]
