"""A residual multi-layer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from optcov.model.blocks import ResidualBlock, SinusoidalEmbedding, TimeMLP, layer, norm, norm_silu


class MLP(nn.Module):
    """Predicts noise in vectors.

    Args:
        data_shape: ``(D,)``.
        channels: width.
        num_blocks: residual blocks.
    Raises:
        ValueError: if the data are not vectors.
    """

    def __init__(self, data_shape: Sequence[int], channels: int = 128, num_blocks: int = 3) -> None:
        super().__init__()
        if len(data_shape) != 1:
            raise ValueError(f"model=mlp takes vectors, but the data have shape {tuple(data_shape)}: set model=unet")
        self.data_shape, self.feature_channels = tuple(data_shape), channels
        self.time = TimeMLP(SinusoidalEmbedding(channels), channels, channels)
        self.input = layer(data_shape[0], channels, 0)
        self.blocks = nn.ModuleList(ResidualBlock(channels, channels, channels, 0) for _ in range(num_blocks))
        self.norm = norm(channels, 0)
        self.output = layer(channels, data_shape[0], 0, zero=True)

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, D]`` and network times ``[B]`` to the output ``[B, D]`` and features ``[B, channels]``."""
        embedded = self.time(time)
        h = self.input(x_t)
        for block in self.blocks:
            h = block(h, embedded)
        return self.output(norm_silu(self.norm, h)), h
