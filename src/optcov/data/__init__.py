"""Data modules: what a model learns and what its samples are compared with."""

from optcov.data.base import DataModule
from optcov.data.celeba import CelebAData
from optcov.data.cifar10 import CIFAR10Data
from optcov.data.digits import DigitsData
from optcov.data.gaussian_mixture import GaussianMixtureData
from optcov.data.image_folder import ImageFolderData

__all__ = ["CIFAR10Data", "CelebAData", "DataModule", "DigitsData", "GaussianMixtureData", "ImageFolderData"]
