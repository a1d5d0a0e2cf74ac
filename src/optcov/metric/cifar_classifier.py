"""A small classifier of CIFAR-10 that ships with the package; ``fd_cifar`` uses its penultimate features.

It is a residual network of nine layers, modelled on D. Page's network for DAWNBench and narrow enough for a file below
2 MB.  ``python -m optcov.metric.train_cifar_classifier`` trained it; the file's metadata record the settings and the
test accuracy.
"""

from __future__ import annotations

from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = files("optcov.metric") / "cifar_classifier.safetensors"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # per channel of CIFAR-10's training set, in [0, 1]


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


class CIFARClassifier(nn.Module):
    """Classifies images ``[B, 3, 32, 32]`` into ten classes.

    Args:
        widths: channels at the four resolutions of 32, 16, 8 and 4 pixels; the last is the number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 96, 192)) -> None:
        super().__init__()
        first, second, third, last = widths
        self.trunk = nn.Sequential(
            _convolution(3, first),
            _convolution(first, second),
            nn.MaxPool2d(2),
            _Residual(second),
            _convolution(second, third),
            nn.MaxPool2d(2),
            _convolution(third, last),
            nn.MaxPool2d(2),
            _Residual(last),
        )
        self.output = nn.Linear(last, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Mean activations of the last hidden layer over pixels.

        Args:
            images: ``[B, 3, 32, 32]`` in [0, 1].
        Returns:
            ``[B, 192]``, not negative.
        """
        return self.trunk((images - self.mean) / self.std).mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images in [0, 1]."""
        return self.output(F.dropout(self.features(images), 0.1, self.training))  # type: ignore[no-any-return]


def load_cifar_classifier() -> CIFARClassifier:
    """Load the trained classifier, in eval mode; its weights are stored in half precision and used in float32."""
    classifier = CIFARClassifier()
    classifier.load_state_dict(load(WEIGHTS.read_bytes()))
    return classifier.eval().requires_grad_(False)
