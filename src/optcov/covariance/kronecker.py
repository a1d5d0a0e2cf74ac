"""Channels (x) space: a covariance of the channels times a spectrum of the image in cosines.

    C = C_channel (x) H^T diag(spatial) H = (V (x) H^T) diag(values (x) spatial) (V (x) H^T)^T

V and values are the eigenvectors and eigenvalues of C_channel, and H are the cosines of `optcov.covariance.bases.DCT`.
This is K-DCT (arXiv:2608.21972) without its diagonal, which can be added as a term of a `SumCovariance`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance.bases import DCT
from optcov.covariance.basis import BasisCovariance


class KroneckerCovariance(BasisCovariance):
    """A covariance of the channels times a diagonal in cosines; it is diagonal in a basis that differs per sample.

    Args:
        channel: symmetric, positive semi-definite, ``[B, C, C]``; `bounded` raises negative eigenvalues to 0.
        spatial: variance of each cosine, ``[B, H, W]``; ``[B]`` for events ``(C,)``.
    Raises:
        ValueError: if the shapes do not fit together.
    """

    def __init__(self, channel: Tensor, spatial: Tensor) -> None:
        if channel.ndim != 3 or channel.shape[1] != channel.shape[2] or len(channel) != len(spatial):
            raise ValueError(
                f"channel must have shape [{len(spatial)}, C, C] (got {tuple(channel.shape)}): give one per sample"
            )
        values, vectors = torch.linalg.eigh(channel)
        variance = values.reshape(values.shape + (1,) * (spatial.ndim - 1)) * spatial[:, None]
        super().__init__(DCT(variance.shape[1:], vectors), variance)
