"""Noise levels: the times that sampling visits, with their alpha, sigma and log SNR computed once in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels ``q(x_t | x_0) = N(alpha x_0, sigma^2 I)``: one, one per sample ``[B]``, or one per step ``[K]``.

    Args:
        t: times in [0, 1]; float64, 0-dimensional or 1-dimensional.
        alpha, sigma: amplitudes of signal and noise, with the shape of ``t``.
        log_snr: ``log(alpha^2 / sigma^2)``; +inf where ``sigma = 0``, -inf where ``alpha = 0``.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor

    @property
    def noise_variance(self) -> Tensor:
        """``r = sigma_t^2 / alpha_t^2``, so that ``Cov[x_0|x_t] = r Cov[eps|x_t]``."""
        return torch.exp(-self.log_snr)

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: int | slice | tuple[slice | None, ...] | None) -> NoiseLevels:
        return NoiseLevels(*(getattr(self, field.name)[index] for field in fields(self)))

    def __iter__(self) -> Iterator[NoiseLevels]:
        return (self[i] for i in range(len(self)))

    def to(self, device: torch.device | str) -> NoiseLevels:
        """Move the levels to a device, once for a whole chain."""
        return NoiseLevels(*(getattr(self, field.name).to(device) for field in fields(self)))

    def flip(self) -> NoiseLevels:
        """Reverse the order of the levels."""
        return NoiseLevels(*(getattr(self, field.name).flip(0) for field in fields(self)))

    @staticmethod
    def cat(levels: list[NoiseLevels]) -> NoiseLevels:
        """Concatenate 0- or 1-dimensional levels in order, to ``[K]``."""
        return NoiseLevels(
            *(torch.cat([getattr(each, field.name).reshape(-1) for each in levels]) for field in fields(NoiseLevels))
        )


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a float64 coefficient to multiply a batch, and cast it to the batch's dtype; no other code casts one.

    Args:
        coefficient: 0-dimensional, or ``[B]`` with one value per sample; any float dtype.
        x: the batch, ``[B, ...]``.
    Returns:
        The coefficient in ``x.dtype``, 0-dimensional or ``[B, 1, ..., 1]``.
    """
    if coefficient.ndim == 1:
        coefficient = coefficient.reshape((-1,) + (1,) * (x.ndim - 1))
    return coefficient.to(x.dtype)
