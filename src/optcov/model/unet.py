"""The U-Net of DDPM (arXiv:2006.11239, Appendix B), of Improved DDPM (arXiv:2102.09672), and of Keras-DDPM.

All three are one class with different arguments; see ``conf/model``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optcov.model.blocks import ResidualBlock, SinusoidalEmbedding, TimeMLP, label_embedding, layer, norm, norm_silu
from optcov.ranges import BelowOne, Depth, Size, Sizes


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map ``[B, C, H, W]``, with a shortcut."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"model.num_heads must divide the {channels} channels (got {num_heads}): give a divisor")
        self.num_heads = num_heads
        self.norm = norm(channels, 2)
        self.qkv = layer(channels, 3 * channels, 2, kernel_size=1)
        self.output = layer(channels, channels, 2, kernel_size=1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # pixels, then channels: a view of channels-last maps
        q, k, v = qkv.reshape(len(x), -1, 3, self.num_heads, x.shape[1] // self.num_heads).permute(2, 0, 3, 1, 4)
        h = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.output(h.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(C)) v``, each ``[B, heads, pixels, C]``."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= 1024:
        weights = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(3)  # twice as fast as PyTorch's fused attention
        return torch.matmul(weights, v)
    return F.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    """Halves height and width with a strided 3x3 convolution, padded on the right and at the bottom as in DDPM."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour upsampling, followed by a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class UNetBlock(nn.Module):
    """A residual block, followed by attention where the U-Net has it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.block(x, time)
        return x if self.attention is None else self.attention(x)


def heights_of(height: int, width: int) -> list[int]:
    """The default heights of a U-Net's levels: halved down to 4 pixels, as long as both sides are even."""
    heights = [height]
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
        heights.append(height)
    return heights


class UNet(nn.Module):
    """A mean network for images.

    Arguments that are None follow the image size; 32 x 32 images get the levels and the attention of DDPM.

    Args:
        data_shape: ``(C, H, W)``; H and W divisible by ``2^(levels - 1)``.
        channels: width at full resolution; even and at least 4.
        channel_mult: factor on ``channels`` at each level; every level after the first halves the resolution.  None for
            1, 2, 2, ... down to 4 pixels.
        num_blocks: residual blocks at each level on the way down; there is one more on the way up.
        attention_resolutions: feature-map heights at which attention follows each block; None for the largest height
            from 8 to 16 that is below that of the images.
        middle_attention: put attention between the two middle blocks.
        num_heads: number of attention heads.
        dropout: dropout rate in residual blocks.
        scale_shift: the time scales and shifts norms (Improved DDPM) instead of being added (DDPM).
        additive_skips: skip connections are added (Keras-DDPM) instead of concatenated.
        patch: height and width of the squares of pixels that become channels at the input and pixels again at the
            output, so that the network works on smaller maps; its square divides ``channels``.  1 for none.
        time_embedding: makes the time embedding from its number of channels.
        num_classes: K, for a class-conditional network; None for an unconditional one.
    Raises:
        ValueError: if the data are not images, their size does not fit the levels, or ``channels`` is odd or below 4.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        channels: Size = 32,
        channel_mult: Sizes | None = None,
        num_blocks: Depth = 1,
        attention_resolutions: Sequence[Size] | None = None,
        middle_attention: bool = True,
        num_heads: Size = 1,
        dropout: BelowOne = 0.0,
        scale_shift: bool = False,
        additive_skips: bool = False,
        patch: Size = 1,
        time_embedding: Callable[[int], nn.Module] = SinusoidalEmbedding,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if len(data_shape) != 3:
            raise ValueError(f"data must be images for model=unet (got shape {tuple(data_shape)}): set model=mlp")
        if channels < 4 or channels % 2:
            raise ValueError(f"model.channels must be even and at least 4 (got {channels}): give 32")
        if data_shape[1] % patch or data_shape[2] % patch or channels % patch**2:
            raise ValueError(
                f"model.patch must divide the height and width of the images, {data_shape[1]} x {data_shape[2]}, and "
                f"its square model.channels, {channels} (got {patch}): give 1"
            )
        in_channels, height, width = data_shape[0] * patch**2, data_shape[1] // patch, data_shape[2] // patch
        heights = heights_of(height, width)
        if channel_mult is None:
            channel_mult = [1] + [2] * (len(heights) - 1)
        levels = [height // 2**i for i in range(len(channel_mult))]
        if attention_resolutions is None:
            attention_resolutions = [height for height in heights[1:] if 8 <= height <= 16][:1]
        elif strange := [height for height in attention_resolutions if height < levels[0] and height not in levels]:
            raise ValueError(
                f"model.attention_resolutions must be among the heights of the levels, {levels} (got {strange[0]}): "
                "give some of them, or []"
            )
        factor = 2 ** (len(channel_mult) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"model.channel_mult must have fewer levels (got {list(channel_mult)}): it halves images "
                f"{len(channel_mult) - 1} times, but {height} x {width} is not divisible by {factor}"
            )
        self.data_shape, self.feature_channels = tuple(data_shape), channels // patch**2
        self.additive_skips, self.patch = additive_skips, patch
        time_channels = 4 * channels
        self.time = TimeMLP(time_embedding(channels), channels, time_channels)

        def block_of(in_channels: int, out_channels: int, height: int) -> UNetBlock:
            block = ResidualBlock(in_channels, out_channels, time_channels, 2, dropout, scale_shift)
            return UNetBlock(block, Attention(out_channels, num_heads) if height in attention_resolutions else None)

        width = channels
        self.input = layer(in_channels, width, 2)
        skips = [width]
        self.down = nn.ModuleList()
        for level, mult in enumerate(channel_mult):
            for _ in range(num_blocks):
                self.down.append(block_of(width, channels * mult, height))
                width = channels * mult
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.down.append(Downsample(width))
                height //= 2
                skips.append(width)

        self.middle1 = UNetBlock(
            ResidualBlock(width, width, time_channels, 2, dropout, scale_shift),
            Attention(width, num_heads) if middle_attention else None,
        )
        self.middle2 = ResidualBlock(width, width, time_channels, 2, dropout, scale_shift)

        self.up = nn.ModuleList()
        self.joins = nn.ModuleList()  # for additive skips: 1x1 convolutions where the channels differ
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_blocks + 1):
                skip = skips.pop()
                if additive_skips:
                    self.joins.append(nn.Identity() if skip == width else layer(skip, width, 2, kernel_size=1))
                self.up.append(block_of(width if additive_skips else width + skip, channels * mult, height))
                width = channels * mult
            if level > 0:
                self.up.append(Upsample(width))
                height *= 2

        self.norm = norm(width, 2)
        self.output = layer(width, in_channels, 2, zero=True)
        self.num_classes = num_classes
        self.label = label_embedding(num_classes, time_channels)

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the output.

        Args:
            x_t: ``[B, C, H, W]``.
            time, labels: network times and classes, ``[B]``.
        Returns:
            The output, of the shape of ``x_t``, and features ``[B, feature_channels, H, W]``.
        """
        embedded = self.time(time)
        if self.label is not None:
            embedded = embedded + self.label(labels)
        h = self.input(F.pixel_unshuffle(x_t, self.patch))
        skips = [h]
        for module in self.down:
            h = module(h, embedded) if isinstance(module, UNetBlock) else module(h)
            skips.append(h)
        h = self.middle2(self.middle1(h, embedded), embedded)
        joins = iter(self.joins)
        for module in self.up:
            if isinstance(module, UNetBlock):
                skip = skips.pop()
                h = h + next(joins)(skip) if self.additive_skips else torch.cat([h, skip], 1)
                h = module(h, embedded)
            else:
                h = module(h)
        output = self.output(norm_silu(self.norm, h))
        return F.pixel_shuffle(output, self.patch), F.pixel_shuffle(h, self.patch)
