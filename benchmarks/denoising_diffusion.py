"""Compares the sampling loop and the U-Net of the package denoising-diffusion-pytorch with ours.

Its U-Net cannot hold our weights, nor those of diffusers: it begins with a 7x7 convolution, normalises after its
convolutions by RMS without groups, attends at every level, and has no bias in queries, keys and values.  Loop and U-Net
are therefore compared separately: its loop runs our network with the same weights, and its U-Net, which has about as
many operations as ours, is compared in GFLOP/s.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

from torch import Tensor, nn

from benchmarks.networks import flops_per_image, pair
from benchmarks.sampling import ours
from benchmarks.timing import Row, Settings, alternate
from optcov.sampler import DDIMSampler
from optcov.variance.fixed import BetaTilde

# the package imports these for its trainer and its FID, which are not measured here; torchvision would have to fit the
# build of PyTorch
NOT_NEEDED = (
    *("torchvision", "accelerate", "ema_pytorch"),
    *("pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception"),
)


def peer_package() -> Any:
    """Import the package without what only its trainer needs; None if it is not installed."""
    standing_in = [name for name in NOT_NEEDED if name not in sys.modules]
    sys.modules.update({name: MagicMock() for name in standing_in})
    try:
        import denoising_diffusion_pytorch
    except ImportError:
        return None
    finally:
        for name in standing_in:
            del sys.modules[name]
    return denoising_diffusion_pytorch


class InItsTerms(nn.Module):
    """A network with the arguments that its loop passes, and without features in its output."""

    channels = out_dim = 3
    self_condition = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, self_condition: None = None) -> Tensor:
        output = self.network(x, time.float())
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def denoising_diffusion_pytorch(settings: Settings) -> Iterator[Row]:
    """The loop and the U-Net of the package of that name, if it is installed."""
    package = peer_package()
    if package is None:
        why = "denoising-diffusion-pytorch is not installed: pip install --no-deps denoising-diffusion-pytorch einops"
        yield Row.left_out("denoising-diffusion-pytorch", why)
        return
    device, batch, steps = settings.device, settings.batch_size, settings.steps[0]
    denoiser, _ = pair(device, settings.channels)
    theirs = InItsTerms(package.Unet(settings.channels, dim_mults=(1, 2, 4))).to(device).eval()
    in_its_loop = InItsTerms(denoiser.network)
    gflop, its_gflop = (flops_per_image(each) / 1e9 for each in (denoiser.network, theirs))

    def loop(network: nn.Module) -> Any:
        return package.GaussianDiffusion(
            network,
            image_size=32,
            sampling_timesteps=steps,
            objective="pred_noise",
            beta_schedule="linear",
            auto_normalize=False,
        ).to(device)

    its_loop, its_own = loop(in_its_loop), loop(theirs)
    turn = ours(denoiser, BetaTilde(denoiser), DDIMSampler(steps), batch, device)
    for precision in settings.precisions:
        turns = {
            "ours": turn,
            "loop": lambda: its_loop.sample(batch),
            "own": lambda: its_own.sample(batch),
        }
        times = alternate({name: settings.at(precision, each) for name, each in turns.items()}, settings)
        setting = f"{precision}, ddim, {steps} steps, batch {batch}"
        row = times.row("ours", "loop", "sampling: loop of denoising-diffusion-pytorch", setting, batch, "images/s")
        row.note = "our network with the same weights in both"
        yield row
        ratios = [each * gflop / its_gflop for each in times.ratios("ours", "own")]
        yield Row(
            "sampling: U-Net of denoising-diffusion-pytorch",
            setting,
            gflop * batch * steps / times.median("ours"),
            its_gflop * batch * steps / times.median("own"),
            "GFLOP/s",
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            peak_ours=times.peak["ours"],
            peak_peer=times.peak["own"],
            note=f"two networks, of {gflop:.1f} and {its_gflop:.1f} GFLOP an image and step",
        )
