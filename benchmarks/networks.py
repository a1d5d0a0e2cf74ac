"""Makes the U-Net of ``conf/model/unet_ddpm_cifar10`` here and in diffusers, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.schedule import LinearSchedule

CONF = Path(__file__).parents[1] / "conf"


def cifar10_network(channels: int = 128) -> UNet:
    """Make the network of ``model=unet_ddpm_cifar10`` for 32 x 32 images, or one with fewer channels."""
    base, override = (OmegaConf.load(CONF / "model" / f"{name}.yaml") for name in ("unet", "unet_ddpm_cifar10"))
    settings: Any = OmegaConf.merge(base, override, {"channels": channels})
    settings.pop("defaults")
    network: UNet = instantiate(settings, data_shape=(3, 32, 32))
    return network


def diffusers_network(size: int = 32, dropout: float = 0.1, channels: int = 128) -> Any:
    """Make diffusers' network of ``google/ddpm-cifar10-32``, or one with fewer channels (a multiple of 32)."""
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=size,
        block_out_channels=(channels, 2 * channels, 2 * channels, 2 * channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        attention_head_dim=None,
        act_fn="silu",
        dropout=dropout,
    )


def pair(device: str = "cpu", channels: int = 128) -> tuple[Denoiser, Any]:
    """Make our network and diffusers', with the same weights, in eval mode; ours in ``channels_last=auto``'s format."""
    torch.manual_seed(0)
    peer, network = diffusers_network(channels=channels).eval(), cifar10_network(channels).eval()
    network.load_state_dict(peer_weights(peer))
    denoiser = Denoiser(network, LinearSchedule(1000)).to(device)
    if device == "cpu":
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return denoiser.eval(), peer.to(device)


def flops_per_image(network: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> float:
    """Floating-point operations of one forward pass on one image; a multiplication and an addition count as two."""
    # let attention use matrix products, because the counter knows only some fused kernels, and none on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        like = next(network.parameters())
        network(torch.zeros(1, *shape, device=like.device), torch.ones(1, device=like.device))
    return float(counter.get_total_flops())


def block_weights(peer: nn.Module) -> dict[str, Tensor]:
    """The weights of a diffusers ResnetBlock2D under our names."""
    names = {"norm1": "norm1", "conv1": "layer1", "time_emb_proj": "time", "norm2": "norm2", "conv2": "layer2"}
    names["conv_shortcut"] = "shortcut"
    return {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in peer.state_dict().items()}


def attention_weights(peer: Any) -> dict[str, Tensor]:
    """The weights of a diffusers Attention under our names; linear layers become 1x1 convolutions."""
    out = {f"norm.{kind}": getattr(peer.group_norm, kind) for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        qkv = torch.cat([getattr(p, kind) for p in (peer.to_q, peer.to_k, peer.to_v)])
        output = getattr(peer.to_out[0], kind)
        out[f"qkv.{kind}"], out[f"output.{kind}"] = (w[..., None, None] if w.ndim == 2 else w for w in (qkv, output))
    return out


def level_weights(peer_level: Any, resamplers: str) -> list[dict[str, Tensor]]:
    """The weights of each of our blocks in one level, in the order of the forward pass."""
    attentions = getattr(peer_level, "attentions", [None] * len(peer_level.resnets))
    stages = []
    for resnet, attention in zip(peer_level.resnets, attentions, strict=True):
        stage = {f"block.{k}": v for k, v in block_weights(resnet).items()}
        if attention is not None:
            stage |= {f"attention.{k}": v for k, v in attention_weights(attention).items()}
        stages.append(stage)
    for resampler in getattr(peer_level, resamplers) or []:
        stages.append({f"conv.{k}": v for k, v in resampler.conv.state_dict().items()})
    return stages


def peer_weights(peer: Any) -> dict[str, Tensor]:
    """All weights of a diffusers UNet2DModel under our names."""
    parts = {
        "input": peer.conv_in.state_dict(),
        "time.1": peer.time_embedding.linear_1.state_dict(),
        "time.3": peer.time_embedding.linear_2.state_dict(),
        "middle1.block": block_weights(peer.mid_block.resnets[0]),
        "middle1.attention": attention_weights(peer.mid_block.attentions[0]),
        "middle2": block_weights(peer.mid_block.resnets[1]),
        "norm": peer.conv_norm_out.state_dict(),
        "output": peer.conv_out.state_dict(),
    }
    down = [stage for level in peer.down_blocks for stage in level_weights(level, "downsamplers")]
    up = [stage for level in peer.up_blocks for stage in level_weights(level, "upsamplers")]
    parts |= {f"down.{i}": stage for i, stage in enumerate(down)} | {f"up.{i}": stage for i, stage in enumerate(up)}
    return {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}
