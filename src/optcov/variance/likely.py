r"""What strategies share that are fitted by likelihood: a scale on which C is of order 1 at every time.

The Gaussian NLL of x_0 given x_t, ``(u^T C^{-1} u + log det C) / 2`` with ``u = x_0 - m = c_out (f - f_net)``, is the
NLL of f up to a constant, ``log |det c_out|``; in either unit C falls by orders of magnitude over time.  With

    C_0(t) = v sigma_t^2 / (sigma_t^2 + alpha_t^2 v)

the posterior variance of white Gaussian data of variance v, a strategy models the ratio ``C / C_0``, and the loss is
the NLL of ``u / sqrt(C_0)``: the same up to another constant, with residuals and variances of order 1 from t = 0, where
``C_0 -> sigma_t^2 / alpha_t^2``, to t = 1, where ``C_0 -> v``.  Nothing is divided by alpha_t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from optcov.covariance import Covariance
from optcov.denoiser import Denoiser, Prediction
from optcov.schedule.levels import NoiseLevels, per_sample

LARGEST_LOG = 10.0  # of a modelled ratio, which keeps its exponential finite


def data_variance(denoiser: Denoiser) -> float:
    """v, a quarter of the largest variance of data in this range: 1/4 on [-1, 1]; 1 where the range is unknown."""
    bound = denoiser.data_range.variance_bound
    return 1.0 if bound is None else bound / 4


class TimeCurves(nn.Module):
    """A learned curve of time for each coordinate of an event, 0 at first: ``sum_k c_k cos(pi k t)``.

    What is the same for all x_t, such as the dark border of digits, is then left to no head.

    Args:
        event_shape: of the coordinates.
        count: of cosines.
    """

    def __init__(self, event_shape: tuple[int, ...], count: int = 8) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(count, *event_shape))

    def forward(self, level: NoiseLevels) -> Tensor:
        """The curves at a level, ``[B, *event]``, or ``[1, *event]`` at one time for all."""
        coefficients = self.coefficients
        k = torch.arange(len(coefficients), dtype=torch.float64, device=coefficients.device)
        waves = torch.cos(math.pi * level.t.reshape(-1, 1) * k).to(coefficients.dtype)
        return (waves @ coefficients.flatten(1)).reshape(-1, *coefficients.shape[1:])


def posterior_variance(variance: Tensor | float, level: NoiseLevels) -> Tensor:
    """``v sigma^2 / (sigma^2 + alpha^2 v)``, of the broadcast shape of v and the level."""
    return variance * level.sigma**2 / (level.sigma**2 + level.alpha**2 * variance)


def reference(denoiser: Denoiser, level: NoiseLevels) -> Tensor:
    """C_0 of a denoiser's data; float64, shape of the level."""
    return posterior_variance(data_variance(denoiser), level)


def residual(denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
    """``(x_0 - m) / sqrt(C_0)``, ``[B, *event]``, with the mean held fixed."""
    level = prediction.level
    scale = denoiser.parameterization.c_out(level) / reference(denoiser, level).sqrt()
    return per_sample(scale, target) * (target - prediction.output.detach())


def nll(ratio: Covariance, residual: Tensor) -> Tensor:
    """``(u^T C^{-1} u + log det C) / 2`` of each sample, ``[B]``, for ``ratio = C / C_0`` and the scaled residual."""
    return (ratio.inv_quad(residual) + ratio.logdet()) / 2


def positive(logarithm: Tensor) -> Tensor:
    """``exp`` of a number, held within `LARGEST_LOG` of 0 by a smooth bend."""
    return (LARGEST_LOG * torch.tanh(logarithm / LARGEST_LOG)).exp()


def per_event(level: NoiseLevels, ndim: int) -> NoiseLevels:
    """A level that broadcasts against events of ``ndim - 1`` axes: ``[B, 1, ..., 1]``, or 0-dimensional as it was."""
    return level[(slice(None), *[None] * (ndim - 1))] if level.t.ndim else level


def scaled(ratio: Covariance, denoiser: Denoiser, prediction: Prediction) -> Covariance:
    """C from ``C / C_0``."""
    scale = reference(denoiser, prediction.level)
    return ratio.affine(scale, torch.zeros_like(scale))
