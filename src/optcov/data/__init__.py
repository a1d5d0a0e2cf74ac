"""Data modules: what a model learns and what its samples are compared with."""

from optcov.data.base import DataModule
from optcov.data.digits import DigitsData
from optcov.data.gaussian_mixture import GaussianMixtureData

__all__ = ["DataModule", "DigitsData", "GaussianMixtureData"]
