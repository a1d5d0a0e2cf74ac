"""The straight path of flow matching and rectified flow: ``alpha_t = 1 - t``, ``sigma_t = t``.

Source: flow matching (arXiv:2210.02747), Eq. 20 with sigma_min = 0; time is reversed so that t = 1 is noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.ranges import Steps
from optcov.schedule.base import NoiseSchedule


class FlowSchedule(NoiseSchedule):
    """``x_t = (1 - t) x_0 + t eps``; no signal is left at ``t = 1``, so networks must predict the velocity or x_0.

    Args:
        num_steps: N, the size of the time grid on which networks are trained and tables are stored.
    """

    def __init__(self, num_steps: Steps = 1000) -> None:
        super().__init__(num_steps)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.to(torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return t.to(torch.float64)

    def log_snr(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        return 2 * (torch.log1p(-t) - t.log())

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.to(torch.float64) / 2)
