"""The trajectory with the best variational bound for the optimal isotropic variance.

With ``Sigma_{s|t} = lambda^2_{s|t} + c^2 C_t`` a transition costs ``d/2 J(s, t)`` nats, ``J = log(Sigma / lambda^2)``.
Dynamic programming finds the path of K nodes from 1 to N with the lowest total J.

Source: Analytic-DPM (arXiv:2201.06503), Theorem 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.ranges import PositiveCount
from optcov.schedule.base import NoiseSchedule
from optcov.trajectory.base import GridTrajectory
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.analytic import Analytic
from optcov.variance.base import Clean, VarianceStrategy


def monotone_variance(denoiser: Denoiser, eps_variance: Tensor, eps_variance_se: Tensor) -> Tensor:
    """Make a measured curve ``C_n = E Var[x_0 | x_n]`` (per dimension) increase with n.

    The true C increases with n, because x_n tells no more about x_0 than x_{n-1} does, and lies in (0, b], where b = 1
    for data on [-1, 1].  A noisy or biased curve violates this where it is least certain: at large n, where
    ``1 - E[e^2]`` (negative if Gamma exceeds 1) is multiplied by r.  A single low value would then make every step from
    that n look free, and every path would pass through it.  The curve is therefore replaced by the nearest increasing
    one (isotonic regression, each value weighted by its standard error), and clamped.

    Args:
        denoiser: the denoiser; its schedule has N steps.
        eps_variance, eps_variance_se: measured values and their standard errors at times n = 1..N, ``[N]``.
    Returns:
        float64 ``[N]``, increasing, in (0, b].
    Raises:
        ValueError: if no value is positive.
    """
    from sklearn.isotonic import isotonic_regression  # type: ignore[import-untyped]

    r = denoiser.parameterization.c_out_sq(denoiser.levels(denoiser.schedule.grid()))
    weight = (r * eps_variance_se.cpu().clamp(min=1e-12)) ** -2
    measured = r * eps_variance.cpu()
    growing = torch.from_numpy(isotonic_regression(measured.numpy(), sample_weight=weight.numpy()))
    if not bool((growing > 0).any()):
        raise ValueError(
            "trajectory=optimal must have a positive variance in its measured curve (got none): train the mean longer"
        )
    return growing.clamp(min=float(growing[growing > 0].min()), max=denoiser.data_range.variance_bound)


class OptimalTrajectory(GridTrajectory):
    """The path with the lowest total ``J``; for K = 1, the single node N.

    An `Analytic` strategy provides the curve of ``C_t``.  For any other strategy a separate pass measures it, and the
    path is then the best one for ``var=analytic``.

    Args:
        num_images: number of images for that separate pass, at least 3.
    Raises:
        ValueError: if there are too few images for a standard error.
    """

    def __init__(self, num_images: PositiveCount = 128) -> None:
        if num_images < 3:
            raise ValueError(
                f"trajectory.num_images must be at least 3 (got {num_images}): the standard error is undefined below "
                "that"
            )
        self.num_images = num_images
        self._paths: ShortestPaths | None = None

    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, clean: Clean) -> None:
        if isinstance(strategy, Analytic):
            curve = strategy
        else:
            curve = Analytic(denoiser, num_images=self.num_images)
            curve.calibrate(denoiser, clean.batches, clean.seed, clean.labels)
        tables = (curve.eps_variance[1:], curve.eps_variance_se[1:])
        means = [table.flatten(1).mean(1) if table.ndim > 1 else table for table in tables]
        self._paths = ShortestPaths(step_costs(denoiser.schedule, monotone_variance(denoiser, *means)))

    def nodes(self, total: int, num_steps: int) -> Tensor:
        if num_steps == 1:
            return torch.tensor([total])
        if self._paths is None:
            raise ValueError("trajectory=optimal must be fitted before use: call its fit first")
        return torch.tensor(self._paths.nodes(num_steps))


def step_costs(schedule: NoiseSchedule, variance: Tensor) -> Tensor:
    """``J(s, t)`` at ``[t, s]``, float64 ``[N + 1, N + 1]``; the only edge out of node 0 leads to 1, at no cost.

    Args:
        schedule: a schedule with N steps.
        variance: ``C_n``, ``[N]``.
    """
    times = schedule.grid()
    levels = schedule.levels(times)
    kernel = ReverseKernel.from_levels(levels[None], levels[:, None])  # the triangle s >= t is not read
    inner = torch.log1p(kernel.c**2 / kernel.lambda_sq * variance[:, None])
    cost = torch.full((len(times) + 1, len(times) + 1), torch.inf, dtype=torch.float64)
    cost[1:, 1:] = torch.where(times[None] < times[:, None], inner, torch.inf)
    cost[1, 0] = 0.0
    return cost
