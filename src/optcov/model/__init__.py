"""Networks: backbones that predict the mean, heads that read their features, and a classifier of noisy data."""

from optcov.model.blocks import LearnedEmbedding, SinusoidalEmbedding
from optcov.model.classifier import Classifier
from optcov.model.head import ComplexHead, InputHead, SimpleHead
from optcov.model.mlp import MLP
from optcov.model.unet import UNet

__all__ = [
    "MLP",
    "Classifier",
    "ComplexHead",
    "InputHead",
    "LearnedEmbedding",
    "SimpleHead",
    "SinusoidalEmbedding",
    "UNet",
]
