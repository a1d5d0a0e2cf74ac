r"""DEIS: a polynomial in t through past noise predictions, integrated exactly along the ODE ("tAB").

With ``rho = sigma / alpha`` the ODE is ``d(x / alpha) = e drho``.  For the Lagrange polynomials l_j of the times t_j,

    x_s = alpha_s / alpha_t x_t + alpha_s sum_j int_t^s l_j drho e_j = alpha_s m_0 + sum_j w_j e_j
    w_j = sigma_s l_j(s) + alpha_s int_s^t l_j' rho dtau                                   by parts

which needs no derivative of the schedule, and nothing at t itself, where a path may have no signal left.

Source: DEIS (arXiv:2204.13902), Eq. 14 and 15 (tAB-DEIS); ``order`` is the number of predictions, its r + 1.
"""

from __future__ import annotations

import numpy as np
import torch

from optcov.sampler.multistep import EpsSampler
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels

POINTS = 64  # of Gauss and Legendre's quadrature


class DEISSampler(EpsSampler):
    """Multistep method in the noise prediction, with coefficients made for the times.

    Args:
        num_steps, order, clip_x0, noise, cut: as in `EpsSampler`.
    """

    def eps_weights(self, schedule: NoiseSchedule, past: NoiseLevels, s: NoiseLevels) -> list[float]:
        points, weights = np.polynomial.legendre.leggauss(POINTS)
        length = float(past.t[0] - s.t)
        at = schedule.levels(s.t + length * torch.from_numpy(points + 1) / 2)
        rho = torch.from_numpy(weights) * length / 2 * at.sigma / at.alpha
        found = []
        for j, node in enumerate(past.t.tolist()):
            others = [other for k, other in enumerate(past.t.tolist()) if k != j]
            line = np.poly1d(others, True) / np.prod([node - other for other in others])
            slope = torch.from_numpy(np.atleast_1d(line.deriv()(at.t.numpy())))
            found.append(float(s.sigma * line(float(s.t)) + s.alpha * (slope * rho).sum()))
        return found
