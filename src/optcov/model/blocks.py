"""Layers shared by backbones and heads; each works on images ``[B, C, H, W]`` and on vectors ``[B, C]``.

Source: the residual block of DDPM (arXiv:2006.11239), with the scale-shift norm of Improved DDPM (arXiv:2102.09672).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def layer(
    in_channels: int, out_channels: int, spatial_dims: int, kernel_size: int = 3, zero: bool = False
) -> nn.Module:
    """Make a size-preserving convolution over 1 to 3 spatial dimensions, or a linear layer for vectors (0).

    With ``zero``, its weights and biases start at 0.

    Raises:
        ValueError: for more dimensions.
    """
    if spatial_dims > 3:
        raise ValueError(f"data must have at most 3 spatial dimensions (got {spatial_dims}): merge some")
    made: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    if spatial_dims:
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
        made = convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    else:
        made = nn.Linear(in_channels, out_channels)
    if zero:
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def norm(channels: int, spatial_dims: int) -> nn.GroupNorm:
    """Make a group normalisation with 32 groups as in DDPM, fewer in narrow networks, and one for vectors.

    Each group has at least 4 channels, because normalising a single channel would cancel the added time embedding.
    """
    groups = math.gcd(max(1, channels // 4), 32) if spatial_dims else 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply a norm and then SiLU to ``[B, C, ...]``; this comes before most layers."""
    if torch.is_grad_enabled() and norm.weight.requires_grad and not x.requires_grad:
        x = x.contiguous()  # PyTorch 2.13 crashes in the backward pass of a channels-last norm behind frozen layers
    # on a CPU, PyTorch normalises small channels-last maps with narrow groups four times slower in bfloat16
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[2:].numel() < 1024
    if slow and x.shape[1] < 16 * norm.num_groups:
        h = F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)
    else:
        h = norm(x)
    return F.silu(h, inplace=not h.requires_grad)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies, ``[B] -> [B, channels]``, as in Transformers and DDPM.

    Args:
        channels: length of the embedding, even and at least 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - 1))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies.to(time.dtype)
        return torch.cat([phase.sin(), phase.cos()], 1)


class LearnedEmbedding(nn.Module):
    """A learned vector for each network time 0..1000, as in Keras-DDPM; ``[B] -> [B, channels]``.

    Times in between, which ODE solvers use, are interpolated linearly.

    Args:
        channels: length of a vector.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(1001, channels)

    def forward(self, time: Tensor) -> Tensor:
        nearest = time.round()
        time = torch.where((time - nearest).abs() < 1e-3, nearest, time).clamp(0, 1000)  # ignore rounding errors
        lower = time.floor().clamp(max=999).long()
        return torch.lerp(self.table(lower), self.table(lower + 1), (time - lower)[:, None].to(self.table.weight.dtype))


class TimeMLP(nn.Sequential):
    """A time embedding followed by two linear layers, ``[B] -> [B, out_channels]``."""

    def __init__(self, embedding: nn.Module, channels: int, out_channels: int) -> None:
        super().__init__(embedding, nn.Linear(channels, out_channels), nn.SiLU(), nn.Linear(out_channels, out_channels))


def label_embedding(num_classes: int | None, channels: int) -> nn.Embedding | None:
    """Make a vector for each class and one for the null label, to add to the time embedding (2105.05233, Sec. 4).

    Call it after creating all other layers, so that with the same seed their initial weights equal those of the
    unconditional network.
    """
    return None if num_classes is None else nn.Embedding(num_classes + 1, channels)


class ResidualBlock(nn.Module):
    """Norm, SiLU and a layer, twice, with a shortcut; the time embedding enters between the two.

    Args:
        in_channels, out_channels: if they differ, the shortcut is a 1x1 layer.
        time_channels: length of the time embedding.
        spatial_dims: 2 for images, 0 for vectors.
        dropout: dropout rate before the second layer.
        scale_shift: the time scales and shifts the output of the second norm instead of being added before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        spatial_dims: int = 2,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = norm(in_channels, spatial_dims)
        self.layer1 = layer(in_channels, out_channels, spatial_dims)
        self.time = nn.Linear(time_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = norm(out_channels, spatial_dims)
        self.dropout = nn.Dropout(dropout)
        self.layer2 = layer(out_channels, out_channels, spatial_dims, zero=True)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else layer(in_channels, out_channels, spatial_dims, kernel_size=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.layer1(norm_silu(self.norm1, x))
        time = self.time(F.silu(time))
        time = time.reshape(time.shape + (1,) * (x.ndim - 2))
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = norm_silu(self.norm2, h.add_(time))
        return self.layer2(self.dropout(h)).add_(self.shortcut(x))  # type: ignore[no-any-return]
