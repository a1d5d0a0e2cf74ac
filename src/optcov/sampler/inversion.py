r"""Inversion, which finds the noise from which an image is generated, and interpolation between two noises.

DDIM's step of the probability-flow ODE from ``t`` to ``s`` is ``x_s = alpha_s m(x_t, t) + sigma_s e(x_t, t)``.  Solved
for x_t it is

    x_t = keep x_s + (sigma_t - keep sigma_s) e(x_t, t),    keep = alpha_t / alpha_s
    x_t = keep (x_s - alpha_s m(x_t, t)),                   keep = sigma_t / sigma_s, if alpha_t = 0

The second form is for a level without signal, where e is ``x_t / sigma_t`` itself.  Both have x_t on both sides.
Evaluating the network at ``(x_s, s)`` instead is DDIM's encoding, exact to first order in the step; each fixed-point
iteration after that comes closer to the exact inverse of the step.

Source: DDIM (arXiv:2010.02502), Sec. 4.3, 5.3, 5.4 and Eq. 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.schedule.levels import per_sample


@torch.no_grad()
def invert(denoiser: Denoiser, x_0: Tensor, times: Tensor, corrections: int = 0) -> Tensor:
    """Find the noise from which deterministic DDIM, or Euler's method, generates ``x_0``.

    Args:
        denoiser: in eval mode.
        x_0: ``[B, *event]`` in the denoiser's range.
        times: ascending float64 ``[K]`` in (0, 1]; use the same times to generate.
        corrections: fixed-point iterations at each time; the total is ``K (1 + corrections)`` network calls.
    Returns:
        x at ``times[-1]``, shape of ``x_0``.
    Raises:
        ValueError: if ``corrections`` is negative.
    """
    if corrections < 0:
        raise ValueError(f"mode.corrections must not be negative (got {corrections}): give 0, 1 or more iterations")
    levels = denoiser.levels(torch.cat([times.new_zeros(1), times]).cpu())
    s, t = levels[:-1], levels[1:]
    no_signal = (t.alpha == 0) & (s.sigma > 0)
    keep = torch.where(no_signal, t.sigma / s.sigma, t.alpha / s.alpha)
    noise = torch.where(no_signal, 0.0, t.sigma - keep * s.sigma)
    signal = torch.where(no_signal, -keep * s.alpha, 0.0)
    keep, noise, signal = (table.to(x_0.device) for table in (keep, noise, signal))
    levels = levels.to(x_0.device)
    x = x_0
    for i in range(len(times)):
        start = x
        for asked in [i, *[i + 1] * corrections]:
            # networks never see clean images (sigma_0 = 0), so the first step calls the network at its end
            prediction = denoiser(x, levels[max(asked, 1)])
            x = per_sample(keep[i], x) * start + per_sample(noise[i], x) * prediction.eps
            x += per_sample(signal[i], x) * prediction.x0
    return x


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation, ``(sin((1 - a) theta) start + sin(a theta) end) / sin(theta)`` (DDIM, Appendix D.5).

    Args:
        start, end: ``[B, *event]``; theta is the angle between the two samples of a pair.  If it is 0, the path is a
            straight line.
        share: a in [0, 1]; 0 gives exactly ``start``, 1 exactly ``end``.
    """
    if share in (0, 1):
        return (end if share else start).clone()
    first, second = start.double().flatten(1), end.double().flatten(1)
    cosine = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    theta = cosine.clamp(-1, 1).acos()
    straight = theta.sin() < 1e-6
    safe = torch.where(straight, 1.0, theta)
    weights = [torch.where(straight, a, (a * safe).sin() / safe.sin()) for a in (1 - share, share)]
    return per_sample(weights[0], start) * start + per_sample(weights[1], end) * end
