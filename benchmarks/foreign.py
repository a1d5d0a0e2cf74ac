"""Scores the samples of a network that others trained, with the covariances of several strategies.

    python -m benchmarks.foreign FOLDER [--names npr_dpm sn_dpm] [--steps 200] [--lr 0.01]

FOLDER holds ``mnist_cnn.pth``, a DDPM on MNIST of github.com/Yichizz/hot_vs_cold_diffusion (MIT, Yichi Zhang 2024), and
MNIST's 10,000 test images, ``t10k-images-idx3-ubyte.gz``.  The score is the Frechet distance of 300 samples on pixels
in [-1, 1], drawn by ten evenly spaced DDPM steps.
"""

from __future__ import annotations

import argparse
import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import optcov
from optcov.denoiser import Denoiser
from optcov.metric.frechet import frechet_distance_of_few

NAMES = ("beta_tilde", "beta", "analytic_imperfect", "npr_dpm", "sn_dpm")


class ForeignNetwork(nn.Module):
    """``(x, u) -> eps`` on ``[B, 1, 28, 28]``, with u = n/1000: four wide convolutions without skips."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 16, 32, 32, 16)
        blocks: list[nn.Module] = [Block(*pair) for pair in pairwise(channels)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(16, 1, 3, padding=1)])
        widths = (32, 128, 128, 128, 16)
        layers: list[nn.Module] = []
        for pair in pairwise(widths):
            layers += [nn.Linear(*pair), nn.GELU()]
        self.time_embed = nn.Sequential(*layers[:-1])
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        angles = u[:, None] * self.frequencies
        time = self.time_embed(torch.cat([angles.sin(), angles.cos() - 1], 1))
        x = self.blocks[0](x) + time[:, :, None, None]
        for block in self.blocks[1:]:
            x = block(x)
        return x


class Block(nn.Module):
    """A 7x7 convolution, a norm over the whole map, and GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(inputs, outputs, 7, padding=3), nn.LayerNorm((outputs, 28, 28)), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def mnist(folder: Path) -> Tensor:
    """Read MNIST's test images, uint8 ``[10000, 1, 28, 28]``."""
    content = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    return torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)


def load(folder: Path, **settings: Any) -> Denoiser:
    """Load the published weights as a denoiser, with the conventions of its authors."""
    path = folder / "mnist_cnn.pth"
    betas = torch.load(path, map_location="cpu", weights_only=True)["beta_t"][1:]  # index 0 was never trained
    stated: dict[str, Any] = {"prediction": "eps", "time": "t", "data_range": (-0.5, 0.5)}
    return optcov.load(path, network=ForeignNetwork(), shape=(1, 28, 28), schedule=betas, **stated | settings)


def distance(denoiser: Denoiser, samples: Tensor, images: Tensor) -> float:
    """Frechet distance between samples and images on [-1, 1]."""
    unit = denoiser.data_range.to_unit(denoiser.data_range.clip(samples))
    return float(frechet_distance_of_few(unit.flatten(1), [images]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with mnist_cnn.pth and t10k-images-idx3-ubyte.gz")
    parser.add_argument("--names", nargs="+", default=NAMES, help="options of var")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a head, on 64 images each")
    parser.add_argument("--lr", type=float, help="learning rate of heads; default: that of optcov.fit")
    parser.add_argument("--head", help="option of head; default: the strategy's own")
    parser.add_argument("--count", type=int, default=300, help="number of samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of fits and samples")
    args = parser.parse_args()
    images = mnist(args.folder)
    denoiser = load(args.folder, images=images[:64])
    for name in args.names:
        settings: dict[str, Any] = {}
        if name.endswith("_dpm"):
            given = {"steps": args.steps, "lr": args.lr, "head": args.head}
            settings = {key: value for key, value in given.items() if value is not None}
        elif name.startswith("analytic"):
            settings = {"num_images": 32, "num_times": 30}
        strategy = optcov.fit(name, denoiser, images, seed=args.seed, progress=False, **settings)
        samples = optcov.sample(denoiser, strategy, 10, args.count, seed=args.seed, progress=False)
        print(f"{name:20} {distance(denoiser, samples, images):6.1f}", flush=True)


if __name__ == "__main__":
    main()
