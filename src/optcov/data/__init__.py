"""Data sources: models learn from them, and samples are compared with them."""

from optcov.data.arrays import ArrayData
from optcov.data.base import DataSource
from optcov.data.celeba import CelebAData
from optcov.data.cifar10 import CIFAR10Data
from optcov.data.digits import DigitsData
from optcov.data.gaussian_mixture import GaussianMixtureData
from optcov.data.huggingface import HuggingFaceData
from optcov.data.image_folder import ImageFolderData
from optcov.data.latents import LatentData
from optcov.data.prepare import prepare
from optcov.data.tensors import TensorData

__all__ = [
    "ArrayData",
    "CIFAR10Data",
    "CelebAData",
    "DataSource",
    "DigitsData",
    "GaussianMixtureData",
    "HuggingFaceData",
    "ImageFolderData",
    "LatentData",
    "TensorData",
    "prepare",
]
