"""Terms of the variational bound: Gaussian divergences, and the probability of an 8-bit pixel under a Gaussian.

All results are in nats per sample.  Source: DDPM (arXiv:2006.11239), Eq. 5 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.data_range import DataRange
from optcov.schedule.levels import per_sample

LogMass = Callable[[Tensor, Tensor, Tensor, DataRange], Tensor]
"""``(x_0, mean, log_variance, data_range) -> [B]``: the log probability of each sample's pixel bins."""


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """``KL(N(mean_q, variance_q) || N(mean_p, variance_p))`` with diagonal covariances.

    Args:
        mean_q, log_variance_q, mean_p, log_variance_p: broadcastable to ``[B, *event]``.
    Returns:
        ``[B]`` nats.
    """
    ratio = log_variance_q - log_variance_p
    # exp(ratio) - 1 would cancel for nearly equal variances, such as those of x_N and its prior
    kl = 0.5 * (torch.expm1(ratio) - ratio + (mean_q - mean_p) ** 2 * (-log_variance_p).exp())
    return kl.flatten(1).sum(1)


def gaussian_kl_between(difference: Tensor, variance_q: Tensor, covariance_p: Covariance) -> Tensor:
    """``KL(N(mean_q, variance_q I) || N(mean_p, Sigma_p))`` for any kind of covariance.

    The divergence is ``(tr R^{-1} - d + log det R + u^T R^{-1} u) / 2`` with ``R = Sigma_p / variance_q`` and
    ``u = (mean_q - mean_p) / sqrt(variance_q)``.  Using ratios keeps log det small, so float32 loses no precision.

    Args:
        difference: ``mean_q - mean_p``, ``[B, *event]``.
        variance_q: positive; 0-dimensional or ``[B]``.
        covariance_p: ``Sigma_p`` of B samples.
    Returns:
        float64 ``[B]`` nats.
    """
    ratio = covariance_p.affine(1 / variance_q, torch.zeros_like(variance_q))
    scaled = difference / per_sample(variance_q.sqrt(), difference)
    excess = ratio.inv_trace().double() - difference[0].numel()
    return (excess + ratio.logdet().double() + ratio.inv_quad(scaled).double()) / 2


def half_bin(data_range: DataRange, x_0: Tensor) -> Tensor | float:
    """Half the distance between two grey levels, in units of the data.

    Args:
        data_range: the ends and grey levels of the data.
        x_0: data, with which ends that differ by channel are made to broadcast.
    Raises:
        ValueError: if the data have no grey levels.
    """
    check_grey_levels(data_range)
    assert data_range.num_levels is not None
    low, high = data_range.ends(x_0)
    return (high - low) / (data_range.num_levels - 1) / 2


def check_grey_levels(data_range: DataRange) -> None:
    """Refuse data without grey levels.

    Raises:
        ValueError: if the data have none.
    """
    if data_range.grey_level is None:
        raise ValueError(
            "data_range must have grey levels for bits/dim (got none): latents and other continuous data have a "
            'density, not a probability per pixel; use bits_per_dim(unit="nats"), which bounds the density'
        )


def pixel_log_mass(
    x_0: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    data_range: DataRange = DataRange(),  # noqa: B008 (frozen)
) -> Tensor:
    """Log probability that ``N(mean, variance)`` gives to the bin of each pixel; the outermost bins extend to infinity.

    The difference of two normal distribution functions is computed on the side where both are small, in logarithms.
    A pixel many standard deviations away therefore still has a finite, exact value and gradient.

    Args:
        x_0: 8-bit data in ``data_range``, ``[B, *event]``.
        mean, log_variance: broadcastable to ``x_0``.
        data_range: the ends and grey levels of the data.
    Returns:
        ``[B]`` nats, summed over pixels; at most 0.
    """
    half, (low, high) = half_bin(data_range, x_0), data_range.ends(x_0)
    centred, inverse_scale = x_0 - mean, (-0.5 * log_variance).exp()
    lower, upper = (centred - half) * inverse_scale, (centred + half) * inverse_scale
    flip = lower > 0  # P(a < Z < b) = P(-b < Z < -a): evaluate both in the lower tail
    near, far = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    gap = (log_far - log_near).clamp(max=-torch.finfo(x_0.dtype).tiny)
    inside = log_near + torch.log(-torch.expm1(gap))
    mass = torch.where(x_0 < low + half / 2, torch.special.log_ndtr(upper), inside)
    mass = torch.where(x_0 > high - half / 2, torch.special.log_ndtr(-lower), mass)
    return mass.flatten(1).sum(1)


def pixel_log_mass_tanh(
    x_0: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    data_range: DataRange = DataRange(),  # noqa: B008 (frozen)
) -> Tensor:
    """As `pixel_log_mass`, with the tanh approximation of the normal distribution function behind published bits/dim.

    ``Phi(z) ~ (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2``, with probabilities clamped to at least 1e-12, as in the
    implementation of Improved DDPM (arXiv:2102.09672).  Use it only for comparison with published numbers: Phi is off
    by up to 3e-4, and the result is meaningless for a pixel beyond seven standard deviations.
    """

    def normal_cdf(z: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    half, (low, high) = half_bin(data_range, x_0), data_range.ends(x_0)
    centred, inverse_scale = x_0 - mean, (-0.5 * log_variance).exp()
    below, above = (normal_cdf((centred + side * half) * inverse_scale) for side in (-1, 1))
    margin = half / 4  # tolerance for rounding, like their 0.001 on [-1, 1]
    mass = torch.where(x_0 < low + margin, above, torch.where(x_0 > high - margin, 1 - below, above - below))
    return mass.clamp(min=1e-12).log().flatten(1).sum(1)
