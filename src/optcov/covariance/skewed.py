r"""One variance and one third moment per coordinate: the matrix is diagonal, and draws are skewed.

A draw is from a mixture of two Gaussians of the same variance,

    1/3 N(d, s^2) + 2/3 N(-d/2, s^2),    d = cbrt(4 mu_3),    s^2 = v - d^2 / 2

whose mean is 0, variance v and third moment ``d^3 / 4 = mu_3``.  A moment that is too large for this, ``d^2 > 2 v``,
is shortened to the largest possible, ``|mu_3| = v^{3/2} / sqrt(2)``.

Source: GMS (arXiv:2311.00941), Sec. 3, whose mixture has these weights; there an optimizer finds d and s, which these
formulas do not need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.schedule.levels import per_sample

THIRD = -0.4307272992954576  # where the standard normal distribution has passed 1/3


class SkewedCovariance(DiagonalCovariance):
    """``C = diag(variance)``, with a third moment of each coordinate; sums with other kinds keep the matrix alone.

    Args:
        variance: ``[B, *event]``.
        third: third central moments, ``[B, *event]``.
    """

    def __init__(self, variance: Tensor, third: Tensor) -> None:
        super().__init__(variance)
        self.third = third

    def affine(self, scale: Tensor, shift: Tensor) -> SkewedCovariance:
        third = per_sample(scale**1.5, self.third) * self.third  # white noise adds none
        return SkewedCovariance(super().affine(scale, shift).variance, third)

    def bounded(self, high: float | Tensor | None) -> SkewedCovariance:
        bounded = super().bounded(high).variance
        return SkewedCovariance(bounded, _shrunk(self.third, bounded, self.variance))

    def draw(self, noise: Noise) -> Tensor:
        variance = self.variance
        side = torch.sign(self.third) * (4 * self.third.abs()) ** (1 / 3)
        most = (2 * variance).sqrt()
        side = side.clamp(-most, most)
        jump = torch.where(noise.draw() < THIRD, side, -side / 2)
        return jump + (variance - side**2 / 2).clamp(min=0).sqrt() * noise.draw()

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        if isinstance(other, SkewedCovariance):
            third = torch.lerp(self.third, other.third, weight)
            return SkewedCovariance(torch.lerp(self.variance, other.variance, weight), third)
        return super().lerp(other, weight)

    def congruence(self, scale: Tensor) -> SkewedCovariance:
        return SkewedCovariance(scale**2 * self.variance, scale**3 * self.third)


def _shrunk(third: Tensor, variance: Tensor, before: Tensor) -> Tensor:
    """Third moments of coordinates whose variance was changed by a factor."""
    ratio = torch.where(variance > 0, (variance / before).clamp(max=1), 0.0)
    return third * ratio**1.5
