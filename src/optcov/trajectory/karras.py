"""EDM's times: even in a root of ``sigma_t / alpha_t``.  Source: EDM (arXiv:2206.00364), Eq. 5."""

from __future__ import annotations

from torch import Tensor

from optcov.ranges import Positive, Share
from optcov.trajectory.log_snr import NoiseLevelTrajectory


class KarrasTrajectory(NoiseLevelTrajectory):
    """Spaces ``(sigma_t / alpha_t)^{1 / rho}`` evenly; a larger rho places times more densely near the data.

    Args:
        rho: at least 1.
        t_max, t_min: as in `NoiseLevelTrajectory`.
    Raises:
        ValueError: if rho is below 1 or the ends are out of order.
    """

    def __init__(self, rho: Positive = 7.0, t_max: Share = 1.0, t_min: Share | None = None) -> None:
        super().__init__(t_max, t_min)
        if not rho >= 1:
            raise ValueError(
                f"trajectory.rho must be at least 1 (got {rho}): give 7, as published, or 1 for even sigma"
            )
        self.rho = rho

    def log_snr_at(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        low, high = (-first / (2 * self.rho)).exp(), (-last / (2 * self.rho)).exp()
        return -2 * self.rho * (low + share * (high - low)).log()
