"""What a noisy image leaves unknown: `uncertainty` gives the mean, the standard deviations and the main directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.covariance import Covariance, FullCovariance
from optcov.covariance.total import EXACT_UP_TO
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import x0_covariance
from optcov.kernel import ReverseKernel
from optcov.variance.base import VarianceStrategy
from optcov.verbs import fitted

__all__ = ["Uncertainty", "principal", "uncertainty"]

ITERATIONS = 30


@dataclass(frozen=True)
class Uncertainty:
    """The distribution of x_0 given x_t, as a denoiser and a strategy have it.

    Args:
        mean: ``E[x_0|x_t]``, ``[B, *event]``.
        std: the root of the diagonal of ``Cov[x_0|x_t]``, ``[B, *event]``.
        directions: its principal directions, of length 1 and largest first, ``[B, count, *event]``.
        variances: along them, ``[B, count]``.
    """

    mean: Tensor
    std: Tensor
    directions: Tensor
    variances: Tensor

    def covers(self, x_0: Tensor, level: float) -> Tensor:
        """Whether the central interval of each pixel holds the truth, bool ``[B, *event]``.

        Args:
            x_0: the truth, ``[B, *event]``.
            level: the probability of the interval by a Gaussian, in (0, 1), such as 0.9.
        """
        bound = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
        held: Tensor = (x_0 - self.mean).abs() <= bound.to(self.std) * self.std
        return held


@torch.no_grad()
def uncertainty(
    denoiser: Denoiser,
    strategy: VarianceStrategy | str,
    x_t: Tensor,
    t: float,
    directions: int = 0,
    condition: Tensor | None = None,
) -> Uncertainty:
    """What is unknown of the clean data behind noisy data.

    Args:
        denoiser: a denoiser from `optcov.load`.
        strategy: from `optcov.fit`, or the name of one that has nothing to fit; `Recalibrated` ones have honest widths.
        x_t: noisy data in the network's range, ``alpha_t x_0 + sigma_t eps``, ``[B, *event]``.
        t: the time, in (0, 1].
        directions: how many principal directions to find, at most d.
        condition: labels, int64 ``[B]``; only for class-conditional denoisers.
    Raises:
        ValueError: if t or the number of directions is out of range, or the strategy is not fitted.
    """
    if not 0 < t <= 1:
        raise ValueError(f"t must lie in (0, 1] (got {t}): give the time of the noise level of x_t")
    dim = x_t[0].numel()
    if not 0 <= directions <= dim:
        raise ValueError(f"directions must lie in 0..{dim}, the dimension (got {directions}): give such as 4")
    strategy = fitted(strategy, denoiser)
    level = denoiser.levels(torch.tensor(t, dtype=torch.float64)).to(x_t.device)
    prediction: Prediction = denoiser(x_t, level, condition)
    data = denoiser.levels(torch.zeros((), dtype=torch.float64)).to(x_t.device)
    kernel = ReverseKernel.from_levels(data, level)  # from which a model of the step has its C
    covariance = x0_covariance(kernel, denoiser, strategy, prediction)
    variances, found = principal(covariance, x_t, directions)
    return Uncertainty(prediction.x0, covariance.diagonal().clamp(min=0).sqrt(), found, variances)


def principal(covariance: Covariance, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues ``[B, count]`` and their eigenvectors ``[B, count, *event]``.

    Exact up to `EXACT_UP_TO` dimensions; beyond, by `ITERATIONS` rounds of orthogonal iteration, each of ``count``
    products.

    Args:
        covariance: of events.
        like: a tensor with their shape, precision and device, ``[B, *event]``.
        count: at most d.
    """
    batch, event = len(like), like.shape[1:]
    if count == 0:
        return like.new_zeros(batch, 0), like.new_zeros(batch, 0, *event)
    if covariance.dim <= EXACT_UP_TO:
        values, vectors = torch.linalg.eigh(FullCovariance.of(covariance).matrix)
        return values[:, -count:].flip(1), vectors[..., -count:].flip(2).mT.reshape(batch, count, *event)
    generator = torch.Generator(like.device).manual_seed(0)
    block = torch.randn(batch, covariance.dim, count, generator=generator, device=like.device, dtype=like.dtype)
    values = like.new_zeros(batch, count)
    for _ in range(ITERATIONS):
        block = torch.linalg.qr(block)[0]
        image = torch.stack([covariance.matvec(v.reshape(batch, *event)).flatten(1) for v in block.unbind(2)], 2)
        values, turn = torch.linalg.eigh(block.mT @ image)  # Rayleigh and Ritz
        block, values = (image @ turn).flip(2), values.flip(1)
    block = block / block.norm(dim=1, keepdim=True)
    return values, block.mT.reshape(batch, count, *event)
