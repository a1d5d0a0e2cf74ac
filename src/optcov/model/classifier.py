"""A classifier of noisy data: the downsampling half of a time-conditional U-Net, averaged over pixels.

Source: classifier guidance (arXiv:2105.05233), Sec. 4.3, with an average instead of attention at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from optcov.model.blocks import ResidualBlock, SinusoidalEmbedding, TimeMLP, layer, norm
from optcov.model.unet import Downsample, heights_of
from optcov.ranges import BelowOne, Depth, Size, Sizes


class Classifier(nn.Module):
    """Computes the logits of p(y|x_t) for images or vectors.

    Args:
        data_shape: ``(C, H, W)`` or ``(D,)``.
        num_classes: K, the number of classes.
        channels: width at full resolution; even and at least 4.
        channel_mult: factor on ``channels`` at each level; every level after the first halves the images.  None for
            1, 2, 2, ... down to 4 pixels, or three levels for vectors.
        num_blocks: residual blocks at each level.
        dropout: dropout rate in residual blocks.
    Raises:
        ValueError: if ``channels`` is odd or below 4.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int,
        channels: Size = 32,
        channel_mult: Sizes | None = None,
        num_blocks: Depth = 1,
        dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"guidance.classifier.channels must be even and at least 4 (got {channels}): give 32")
        dims = len(data_shape) - 1
        if channel_mult is None:
            channel_mult = [1] + [2] * (len(heights_of(data_shape[1], data_shape[2])) - 1) if dims else [1, 1, 1]
        self.time = TimeMLP(SinusoidalEmbedding(channels), channels, 4 * channels)
        self.input = layer(data_shape[0], channels, dims)
        self.blocks, width = nn.ModuleList(), channels
        for level, mult in enumerate(channel_mult):
            if level > 0 and dims:
                self.blocks.append(Downsample(width))
            for _ in range(num_blocks):
                self.blocks.append(ResidualBlock(width, channels * mult, 4 * channels, dims, dropout))
                width = channels * mult
        self.norm = norm(width, dims)
        self.output = nn.Linear(width, num_classes)

    def forward(self, x_t: Tensor, network_time: Tensor) -> Tensor:
        """Compute logits ``[B, K]``.

        Args:
            x_t: noisy data ``[B, *data_shape]``.
            network_time: the time that the mean network is given, 0-dimensional or ``[B]``.
        """
        time = self.time(network_time.to(self.output.weight.dtype).expand(len(x_t)))
        h = self.input(x_t)
        for block in self.blocks:
            h = block(h, time) if isinstance(block, ResidualBlock) else block(h)
        h = F.silu(self.norm(h))
        return self.output(h.flatten(2).mean(2) if h.ndim > 2 else h)  # type: ignore[no-any-return]
