"""Heads: small networks on a frozen backbone's last feature map, with one output per pixel.

For vectors the convolutions become linear layers.  Source: NPR-DPM and SN-DPM (arXiv:2206.07309), Sec. 5 and Appendix.
"""

from __future__ import annotations

from torch import Tensor, nn

from optcov.model.blocks import ResidualBlock, SinusoidalEmbedding, TimeMLP, layer, norm, norm_silu
from optcov.ranges import Size


class SimpleHead(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution.

    Args:
        feature_channels: number of channels of the feature map.
        data_shape: ``(C, H, W)`` or ``(D,)``.
    """

    def __init__(self, feature_channels: int, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = norm(feature_channels, len(data_shape) - 1)
        self.output = layer(feature_channels, data_shape[0], len(data_shape) - 1, zero=True)

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        """Compute the output.

        Args:
            features: ``[B, feature_channels, ...]``.
            network_time: the time that the backbone is given, 0-dimensional or ``[B]``.
        Returns:
            ``[B, *data_shape]``.
        """
        return self.output(norm_silu(self.norm, features))  # type: ignore[no-any-return]


class ComplexHead(SimpleHead):
    """A time-conditional residual block in front of the simple head.

    Args:
        feature_channels, data_shape: as in `SimpleHead`.
        hidden_channels: width of the residual block; None for the number of feature channels.
    """

    def __init__(self, feature_channels: int, data_shape: tuple[int, ...], hidden_channels: Size | None = None) -> None:
        hidden = hidden_channels or feature_channels
        super().__init__(hidden, data_shape)
        self.hidden_channels = hidden_channels
        width = 4 * max(hidden // 4, 8)
        self.time = TimeMLP(SinusoidalEmbedding(width), width, width)
        self.block = ResidualBlock(feature_channels, hidden, width, len(data_shape) - 1)

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        time = self.time(network_time.to(self.norm.weight.dtype).expand(len(features)))  # features may be bfloat16
        return super().forward(self.block(features, time), network_time)


class InputHead(nn.Module):
    """A small separate network for a backbone that exposes no feature map; it reads the backbone's input and output.

    Args:
        feature_channels: number of channels of ``(x_t, output)``, twice that of the data.
        data_shape: as in `SimpleHead`.
        hidden_channels: width of its layers.
    """

    def __init__(self, feature_channels: int, data_shape: tuple[int, ...], hidden_channels: Size = 32) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.input = layer(feature_channels, hidden_channels, len(data_shape) - 1)
        self.head = ComplexHead(hidden_channels, data_shape)

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        """As `SimpleHead.forward`."""
        return self.head(self.input(features), network_time)  # type: ignore[no-any-return]
