r"""iPNDM: Adams-Bashforth's combination of past noise predictions in DDIM's step.

    x_s = alpha_s m_0 + sigma_s e_0 + (sigma_s - alpha_s sigma_t / alpha_t) (sum_j b_j e_j - e_0)

with the coefficients b of Adams and Bashforth, and as many as there are predictions in the first steps.  They are those
of equal steps: where steps are even in ``rho = sigma / alpha`` the order is the number of predictions, elsewhere 2.

Sources: PNDM (arXiv:2202.09778), Eq. 12; DEIS (arXiv:2204.13902), which starts it with lower orders ("improved").
"""

from __future__ import annotations

from optcov.sampler.multistep import EpsSampler
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class IPNDMSampler(EpsSampler):
    """Multistep method in the noise prediction, with fixed coefficients.

    Args:
        num_steps, order, clip_x0, noise, cut: as in `EpsSampler`.
    """

    def eps_weights(self, schedule: NoiseSchedule, past: NoiseLevels, s: NoiseLevels) -> list[float]:
        t = past[0]
        if len(past) == 1:
            return [float(s.sigma)]
        change = float(s.sigma - s.alpha * t.sigma / t.alpha)
        first, *rest = ADAMS_BASHFORTH[len(past) - 1]
        return [float(s.sigma) + change * (first - 1), *(change * each for each in rest)]
