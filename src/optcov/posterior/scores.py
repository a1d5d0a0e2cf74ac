"""Scores of posterior samples, each with its standard error over measurements.

energy      2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples and the exact posterior, unbiased
rmse        error of the samples' mean against the mean of the exact posterior
c50 c90 c95 how often central intervals of the samples contain the truth, in %, for unmeasured values
crps        continuous ranked probability score of the truth, unbiased, for unmeasured values
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = (50, 90, 95)
ENOUGH = 39  # samples, with which the interval from the first to the last holds 95 %


def against_posterior(samples: Tensor, exact: Tensor, means: Tensor) -> dict[str, Tensor]:
    """Energy distance and mean squared error of the mean, each ``[n]``.

    Args:
        samples: ``[n, count, d]``.
        exact: samples of the exact posteriors, ``[n, count', d]``.
        means: of the exact posteriors, ``[n, d]``.
    """
    count, others = samples.shape[1], exact.shape[1]
    within = torch.cdist(samples, samples).sum((1, 2)) / (count * (count - 1))
    other = torch.cdist(exact, exact).sum((1, 2)) / (others * (others - 1))
    energy = 2 * torch.cdist(samples, exact).mean((1, 2)) - within - other
    return {"energy": energy, "mse": ((samples.mean(1) - means) ** 2).mean(1)}


def against(truth: Tensor, samples: Tensor) -> dict[str, Tensor]:
    """Coverage of central intervals in % and CRPS, each ``[n]``.

    An interval lies between the quantiles below which a new sample of the same law falls at the stated rate.  It cannot
    be wider than from the first sample to the last, so that 90 % need 19 samples, and 95 % need 39.

    Args:
        truth: ``[n, d]``.
        samples: ``[n, count, d]``.
    """
    count, ordered = samples.shape[1], samples.sort(1).values
    found = {}
    for level in LEVELS:
        low, high = (_quantile(ordered, end) for end in (0.5 - level / 200, 0.5 + level / 200))
        found[f"c{level}"] = 100 * ((low <= truth) & (truth <= high)).double().mean(1)
    rank = 2 * torch.arange(1, count + 1)[None, :, None] - count - 1
    spread = (rank * ordered).sum(1) / (count * (count - 1))  # half of E|X - X'|
    return found | {"crps": ((ordered - truth[:, None]).abs().mean(1) - spread).mean(1)}


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """The quantile, between two of n ordered samples, below which a new sample of the same law falls at this rate."""
    place = min(max(level * (ordered.shape[1] + 1) - 1, 0.0), ordered.shape[1] - 1.0)
    low = int(place)
    return ordered[:, low].lerp(ordered[:, min(low + 1, ordered.shape[1] - 1)], place - low)
