r"""Covariances in the latents of a small autoencoder: trains it on CIFAR-10, and writes a table of its page.

    python -m benchmarks.latents train FOLDER            minutes of one core; makes FOLDER/autoencoder
    python -m benchmarks.latents collect FOLDER SWEEP... the scores of runs, and of reconstructions: the floor
    python -m benchmarks.latents write                   writes the table again

Between them, ``train.py data=latents data.autoencoder=FOLDER/autoencoder`` encodes the images to disk, trains a mean
network on the latents, fits a variance, decodes its samples and scores them in pixels.

The autoencoder is diffusers' AutoencoderKL (2112.10752) from 3 x 32 x 32 pixels to 4 x 16 x 16 latents, trained by the
absolute error of the pixels and a small weight of the divergence of the latents from white noise, without a perceptual
or an adversarial loss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference_page import ROOT, filled, table
from optcov.data import CIFAR10Data
from optcov.data.pixels import to_uint8
from optcov.files import write_atomically
from optcov.metric import CIFARFeatures, FrechetDistance, Reference

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "latents.json", ROOT / "docs" / "your_network.md"
BATCH, RATE, DIVERGENCE = 32, 3e-3, 1e-4
STEPS = (5, 10)
LIMIT = 10_000  # training images of the mean network, with which samples are compared
ORDER = ("beta_tilde", "analytic", "npr_dpm", "sn_dpm")


def autoencoder() -> Any:
    """Make the untrained network, 159,383 parameters."""
    from diffusers import AutoencoderKL

    network: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        mid_block_add_attention=False,
    )
    return network


def train(images: Tensor, steps: int) -> Any:
    """Train it on images.

    Args:
        images: uint8 ``[n, 3, 32, 32]``.
        steps: number of optimizer steps of 32 images; the rate falls linearly to 0.
    """
    torch.manual_seed(0)
    network = autoencoder()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 50) * (1 - i / steps))
    began = time.process_time()
    for step in range(steps):
        x = images[torch.randint(len(images), (BATCH,))].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = network.encode(x).latent_dist
            decoded = network.decode(posterior.sample()).sample
        error = (decoded.float() - x).abs().mean()
        loss = error + DIVERGENCE * posterior.kl().mean() / math.prod(posterior.mean.shape[1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}: error {float(error.detach()):.4f}, {time.process_time() - began:.0f} s", flush=True
            )
    return network.eval()


@torch.no_grad()
def scale(network: Any, images: Tensor) -> None:
    """Note in the config the factor that gives the latents of images, uint8, unit variance."""
    latents = torch.cat(
        [network.encode(each.float() / 127.5 - 1).latent_dist.mode() for each in torch.split(images, 64)]
    )
    network.register_to_config(scaling_factor=1 / float(latents.std()))


@torch.no_grad()
def floor(folder: Path, images: Tensor, reference: Tensor) -> dict[str, float]:
    """What no sample can beat but by luck: the scores of test images, and of the same encoded and decoded.

    Args:
        folder: of the autoencoder.
        images, reference: test and training images, uint8 ``[n, 3, 32, 32]``.
    """
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    x = images.float() / 127.5 - 1
    decoded = torch.cat([network.decode(network.encode(each).latent_dist.mode()).sample for each in torch.split(x, 64)])
    found = {"psnr": 10 * math.log10(4 / float(((decoded.clamp(-1, 1) - x) ** 2).mean()))}
    metric = FrechetDistance(CIFARFeatures())
    metric.refer_to(Reference(reference))
    for name, each in (("images", images), ("decoded", to_uint8(decoded))):
        metric.reset()
        metric.update(each)
        found[name] = metric.compute()["fd_cifar"].value
    return found


def collect(folder: Path, sweeps: list[Path], data: CIFAR10Data) -> None:
    """Gather the scores of runs."""
    results = [json.loads(path.read_text()) for sweep in sweeps for path in sorted(sweep.rglob("results.json"))]
    cells = {f"{each['var']} {each['num_steps']}": each["metrics"]["fd_cifar_1k"] for each in results}
    every, test = (torch.as_tensor(data.load(split)) for split in ("train", "test"))
    content = {"floor": floor(folder / "autoencoder", test[:1000], every[:: len(every) // LIMIT])}
    write_atomically(RESULTS, json.dumps(content | {"cells": cells}, indent=1) + "\n")


def tables(content: dict[str, Any]) -> dict[str, str]:
    """The table of the page; the best of a column is bold."""
    cells = content["cells"]
    best = {steps: min(cells[f"{name} {steps}"] for name in ORDER) for steps in STEPS}
    rows = []
    for name in ORDER:
        values = [(cells[f"{name} {steps}"], best[steps]) for steps in STEPS]
        rows.append([f"`{name}`", *(f"**{v:.3f}**" if v == top else f"{v:.3f}" for v, top in values)])
    return {"latents": table(["covariance in latents", *(f"{steps} steps" for steps in STEPS)], rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "collect", "write"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/latents"))
    parser.add_argument("sweeps", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPTCOV_DATA", "data")))
    args = parser.parse_args()
    data = CIFAR10Data(str(args.data / "cifar10"), str(args.folder / "cache"), random_flip=False)
    if args.part == "train":
        images = torch.as_tensor(data.load("train"))
        network = train(images, args.steps)
        scale(network, images[:2000])
        network.save_pretrained(args.folder / "autoencoder")
    elif args.part == "collect":
        collect(args.folder, args.sweeps, data)
    if args.part != "train":
        PAGE.write_text(filled(PAGE.read_text(), tables(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    main()
