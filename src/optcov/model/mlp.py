"""A residual multi-layer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from optcov.model.blocks import ResidualBlock, SinusoidalEmbedding, TimeMLP, label_embedding, layer, norm, norm_silu
from optcov.ranges import Depth, Size


class MLP(nn.Module):
    """A mean network for vectors.

    Args:
        data_shape: ``(D,)``.
        channels: width of the layers.
        num_blocks: number of residual blocks.
        num_classes: K, for a class-conditional network; None for an unconditional one.
    Raises:
        ValueError: if the data are not vectors.
    """

    def __init__(
        self, data_shape: Sequence[int], channels: Size = 128, num_blocks: Depth = 3, num_classes: int | None = None
    ) -> None:
        super().__init__()
        if len(data_shape) != 1:
            raise ValueError(f"data must be vectors for model=mlp (got shape {tuple(data_shape)}): set model=unet")
        self.data_shape, self.feature_channels = tuple(data_shape), channels
        self.time = TimeMLP(SinusoidalEmbedding(channels), channels, channels)
        self.input = layer(data_shape[0], channels, 0)
        self.blocks = nn.ModuleList(ResidualBlock(channels, channels, channels, 0) for _ in range(num_blocks))
        self.norm = norm(channels, 0)
        self.output = layer(channels, data_shape[0], 0, zero=True)
        self.num_classes = num_classes
        self.label = label_embedding(num_classes, channels)

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute output ``[B, D]`` and features ``[B, channels]`` from x_t ``[B, D]``, times and labels ``[B]``."""
        embedded = self.time(time)
        if self.label is not None:
            embedded = embedded + self.label(labels)
        h = self.input(x_t)
        for block in self.blocks:
            h = block(h, embedded)
        return self.output(norm_silu(self.norm, h)), h
