"""The profile of a strategy: ``Cov[x_0 | x_t]`` and the variance of a step as functions of time, with their bounds.

    0 <= C <= min(b, r),   lambda^2 <= Sigma_{s|t} <= lambda^2 + c^2 min(b, r),   r = sigma_t^2 / alpha_t^2

The bounds hold for averages over x_t.  The variance of the data is at most b, which is 1 on [-1, 1] and infinite for
data with unknown support.  Source: Analytic-DPM (arXiv:2201.06503), Theorem 2 (r is its Eq. 11, b its Eq. 12).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.guidance.base import Guidance
from optcov.kernel import ReverseKernel
from optcov.seeds import Stream, derive_seed
from optcov.variance.analytic import even_in_log_snr
from optcov.variance.base import VarianceStrategy

COLUMNS = ("t", "s", "mean", "q05", "q95", "upper", "step_lower", "step_mean", "step_upper")


def num_profile_images(dimensions: int) -> int:
    """How many images `variance_profile` needs: enough for 4096 values at each time, and at least 8."""
    return max(8, -(-4096 // dimensions))


@torch.no_grad()
def variance_profile(
    denoiser: Denoiser,
    strategy: VarianceStrategy,
    images: Tensor,
    stride: float,
    seed: int = 0,
    num_times: int = 32,
    guidance: Guidance | None = None,
    condition: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measure the diagonal of C, bounded as in steps, and the variance of the resulting DDPM step (eta = 1).

    Args:
        denoiser, strategy: a mean network and its fitted variance, in eval mode, on the device of the images.
        images: clean data in the denoiser's range, ``[B, *event]``; each keeps the same noise at all times.
        stride: length of a step in (0, 1], such as 1/K for K even steps; a step ends at ``s = max(t - stride, 1/N)``.
        seed: seed of the noise.
        num_times: at most this many times in (1/N, 1], evenly spaced in log SNR.
        guidance, condition: the same as for the samples.
    Returns:
        float64 ``[K]`` on the CPU for each name, ascending in t: ``t`` and ``s``; ``mean``, ``q05`` and ``q95`` of C's
        diagonal over pixels and images, and ``upper``, its bound min(b, r); ``step_lower``, ``step_mean`` and
        ``step_upper``, the variance of the step: lambda^2, the mean over pixels and images, and the bound.
    """
    guidance = guidance or Guidance()
    schedule = denoiser.schedule
    nodes = even_in_log_snr(schedule, num_times)
    t = nodes[nodes > 1].double() / schedule.num_steps
    levels = denoiser.levels(t)
    kernels = ReverseKernel.from_levels(denoiser.levels((t - stride).clamp(min=1 / schedule.num_steps)), levels)
    generator = torch.Generator(images.device).manual_seed(derive_seed(seed, Stream.CURVE))
    eps = torch.randn(images.shape, dtype=images.dtype, device=images.device, generator=generator)
    rows = []
    for i, level in enumerate(levels.to(images.device)):
        prediction = guidance.predict(denoiser, strategy, denoiser.diffuse(images, eps, level), level, condition)
        kernel = kernels[i].to(images.device)
        variance = guidance.covariance(kernel, denoiser, strategy, prediction).diagonal()
        values = variance.double().cpu().numpy()
        rows.append([values.mean(), *np.quantile(values, [0.05, 0.95])])  # torch.quantile takes at most 16 million
    mean, q05, q95 = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1)
    bound = denoiser.data_range.variance_bound
    upper = levels.noise_variance if bound is None else levels.noise_variance.clamp(max=bound)
    steps = (kernels.lambda_sq + kernels.c**2 * c for c in (torch.zeros_like(mean), mean, upper))
    s = (t - stride).clamp(min=1 / schedule.num_steps)
    return dict(zip(COLUMNS, (t, s, mean, q05, q95, upper, *steps), strict=True))
