"""Terms of the variational bound: Gaussian divergences and the mass that a Gaussian gives to an 8-bit pixel.

Source: DDPM (arXiv:2006.11239), Eq. 5 and 13.  All in nats per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.covariance import Covariance

LogMass = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_0, mean, log_variance) -> [B]``, the log mass of each sample's bins: :func:`pixel_log_mass` or its like."""

HALF_BIN = 1 / 255  # 256 grey levels over [-1, 1] lie 2/255 apart


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """``KL(N(mean_q, variance_q) || N(mean_p, variance_p))`` with diagonal covariances.

    Args:
        mean_q, log_variance_q, mean_p, log_variance_p: broadcastable to ``[B, *event]``.
    Returns:
        ``[B]`` nats.
    """
    ratio = log_variance_q - log_variance_p
    kl = 0.5 * (ratio.exp() - ratio - 1 + (mean_q - mean_p) ** 2 * (-log_variance_p).exp())
    return kl.flatten(1).sum(1)


def gaussian_kl_between(difference: Tensor, variance_q: Tensor, covariance_p: Covariance) -> Tensor:
    """``KL(N(mean_q, variance_q I) || N(mean_p, Sigma_p))`` for any kind of covariance.

    With ``R = Sigma_p / variance_q`` it is ``(tr R^{-1} - d + log det R + u^T R^{-1} u) / 2`` for
    ``u = (mean_q - mean_p) / sqrt(variance_q)``: in ratios, so that float32 loses nothing to the size of log det.

    Args:
        difference: ``mean_q - mean_p``, ``[B, *event]``.
        variance_q: above 0; 0-dimensional or ``[B]``.
        covariance_p: of B samples.
    Returns:
        float64 ``[B]`` nats.
    """
    ratio = covariance_p.affine(1 / variance_q, torch.zeros_like(variance_q))
    scaled = difference / per_sample(variance_q.sqrt(), difference)
    excess = ratio.inv_trace().double() - difference[0].numel()
    return (excess + ratio.logdet().double() + ratio.inv_quad(scaled).double()) / 2


def pixel_log_mass(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the mass of ``N(mean, variance)`` in the bin of each pixel; the bins of -1 and 1 have open tails.

    The difference of two normal distribution functions is taken on the side where both are small, in logarithms, so
    that a pixel many standard deviations away still has a finite, exact value and gradient.

    Args:
        x_0: 8-bit data in [-1, 1], ``[B, *event]``; mean, log_variance: broadcastable to it.
    Returns:
        ``[B]`` nats, summed over pixels; at most 0.
    """
    centred, inverse_scale = x_0 - mean, (-0.5 * log_variance).exp()
    lower, upper = (centred - HALF_BIN) * inverse_scale, (centred + HALF_BIN) * inverse_scale
    flip = lower > 0  # P(a < Z < b) = P(-b < Z < -a): keep both in the lower tail
    near, far = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    gap = (log_far - log_near).clamp(max=-torch.finfo(x_0.dtype).tiny)
    inside = log_near + torch.log(-torch.expm1(gap))
    half = HALF_BIN / 2
    mass = torch.where(x_0 < -1 + half, torch.special.log_ndtr(upper), inside)
    mass = torch.where(x_0 > 1 - half, torch.special.log_ndtr(-lower), mass)
    return mass.flatten(1).sum(1)


def pixel_log_mass_tanh(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """As :func:`pixel_log_mass`, ``Phi(z) ~ (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2``, masses not below 1e-12.

    The approximation behind published bits/dim (Improved DDPM's implementation, arXiv:2102.09672), for comparison with
    them; it is off by up to 3e-4 in Phi, and by everything where a pixel lies beyond seven standard deviations.
    """

    def normal_cdf(z: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    centred, inverse_scale = x_0 - mean, (-0.5 * log_variance).exp()
    below, above = (normal_cdf((centred + side * HALF_BIN) * inverse_scale) for side in (-1, 1))
    mass = torch.where(x_0 < -0.999, above, torch.where(x_0 > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log().flatten(1).sum(1)
