"""Feature networks for tests: a fixed projection of the pixels that counts what it sees, and Inception by formula."""

import math

import torch
from torch import Tensor, nn

from optcov.data.pixels import from_uint8
from optcov.metric import FeatureNetwork
from optcov.metric.inception import InceptionV3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(count: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    """Uniform noise, uint8 ``[count, 3, 4, 4]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


class Projection(FeatureNetwork):
    """``dim`` features; ``logits`` are what an inception score reads."""

    name = "projection"

    def __init__(self, dim: int = 6, batch_size: int = 16) -> None:
        super().__init__(batch_size)
        self.dim, self.seen = dim, 0

    @property
    def key(self) -> str:
        return f"{self.name}-{self.dim}"

    def num_features(self, data_shape: tuple[int, ...]) -> int:
        return self.dim

    def extract(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        pixels = from_uint8(images).flatten(1)
        return (pixels @ random(pixels.shape[1], self.dim, seed=7).float() / 3).relu()

    def logits(self, features: Tensor) -> Tensor:
        return features @ random(self.dim, 1008, seed=8).to(features.dtype)


def inception_by_formula() -> InceptionV3:
    """Every number of the network from a formula that no version changes, of a size that reaches the last layer."""

    def wave(tensor: Tensor, phase: int) -> Tensor:
        return torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) ** 2 * 0.61803 + phase).view_as(tensor)

    network = InceptionV3().eval()
    with torch.no_grad():
        for i, module in enumerate(network.modules()):
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(wave(module.weight, i) * math.sqrt(4 / module.weight[0].numel()))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.1 * wave(module.weight, i))
                module.bias.copy_(0.1 * wave(module.bias, i + 1))
                module.running_mean.copy_(0.1 * wave(module.running_mean, i + 2))
                module.running_var.copy_(1 + 0.4 * wave(module.running_var, i + 3))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(0.1 * wave(module.weight, i))
    return network


def waves(shape: tuple[int, int]) -> Tensor:
    """Two colour images by formula, uint8 ``[2, 3, H, W]``."""
    steps = torch.arange(6 * math.prod(shape), dtype=torch.float64)
    return (127.5 + 127.4 * torch.sin(steps**1.5)).to(torch.uint8).view(2, 3, *shape)
