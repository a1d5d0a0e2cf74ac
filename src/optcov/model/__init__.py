"""Backbones, which predict the mean, and heads, which read their features."""

from optcov.model.blocks import LearnedEmbedding, SinusoidalEmbedding
from optcov.model.head import ComplexHead, SimpleHead
from optcov.model.mlp import MLP
from optcov.model.unet import UNet

__all__ = ["MLP", "ComplexHead", "LearnedEmbedding", "SimpleHead", "SinusoidalEmbedding", "UNet"]
