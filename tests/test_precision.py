"""What is computed from a schedule, against 50-digit arithmetic: kernel, solvers, trajectories, likelihood, guidance.

The references multiply published formulas out, in `decimal`, and in mpmath where that lacks a function.  They are as
direct as they can be: 50 digits afford a difference of nearly equal numbers, which float64 does not.  Errors are
relative, and at most 1e-10; a zero must be found as a zero.

The kernel is compared at all neighbours, at all pairs with one of the two nodes at either end, and at random ones;
``python -m benchmarks.precision`` compares all pairs.
"""

import decimal
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.precision import (
    ETAS,
    SCHEDULES,
    TOLERANCE,
    Exact,
    ExactPath,
    exactly,
    exponential,
    fifty_digits,
    kernel_errors,
    natural_log,
    published_path,
    relative_error,
    rounded,
    square_root,
)
from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, IsotropicCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance
from optcov.kernel import ReverseKernel
from optcov.likelihood import VariationalBound, gaussian_kl, gaussian_kl_between, pixel_log_mass
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.sampler import (
    DPMSolverPPSampler,
    DPMSolverSampler,
    EulerMaruyamaSampler,
    EulerSampler,
    HeunSampler,
    PredictorCorrectorSampler,
)
from optcov.sampler.multistep import LinearPlan, adams_weights
from optcov.sampler.single_step import CallPlan
from optcov.schedule import (
    CosineSchedule,
    FlowSchedule,
    NoiseSchedule,
    SqrtLinearSchedule,
    VESchedule,
    VPSDESchedule,
)
from optcov.trajectory.karras import KarrasTrajectory
from optcov.trajectory.log_snr import LogSNRTrajectory
from optcov.trajectory.optimal import step_costs
from optcov.variance.base import StepModel
from optcov.variance.fixed import BetaTilde
from optcov.variance.iddpm import LearnedRange


@pytest.fixture(autouse=True)
def _fifty_digits() -> Iterator[None]:
    with fifty_digits():
        yield


@dataclass(frozen=True)
class Path:
    """A schedule, times in rising order from 0 on, and what is exact there."""

    schedule: NoiseSchedule
    times: Tensor
    exact: ExactPath
    random_pairs: int = 2000

    @functools.cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Indices ``s < t``: all neighbours, all pairs with one of the two nodes at either end, and random ones."""
        count = len(self.times)
        n = torch.arange(count)
        drawn = torch.randint(count, (2, self.random_pairs), generator=torch.Generator().manual_seed(count))
        found = [drawn[:, drawn[0] != drawn[1]].sort(0).values, torch.stack([n[:-1], n[1:]])]
        for end in (0, 1, count - 2, count - 1):
            others = n[n != end]
            found.append(torch.stack([others, torch.full_like(others, end)]).sort(0).values)
        s, t = torch.cat(found, 1)
        numbers = (s * count + t).unique()
        return numbers // count, numbers % count


def published(name: str, total: int) -> Path:
    times = torch.arange(total + 1, dtype=torch.float64) / total
    return Path(SCHEDULES[name](total), times, published_path(name, total), random_pairs=4000)


def sqrt_linear(total: int) -> Path:
    betas = np.array([Decimal("0.02") * n / total * 1000 / total for n in range(1, total + 1)])
    kept: Exact = np.concatenate([[Decimal(1)], np.cumprod(1 - betas)])
    times = torch.arange(total + 1, dtype=torch.float64) / total
    return Path(SqrtLinearSchedule(total), times, ExactPath(kept, 1 - kept))


def vp_sde(total: int) -> Path:
    """``-log alpha^2 = int_0^t beta(u) du = 0.1 t + 19.9 t^2 / 2``, also between and below the nodes."""
    grid, below = torch.arange(total + 1, dtype=torch.float64) / total, torch.logspace(-8, -3, 30, dtype=torch.float64)
    times = torch.cat([grid, below[:-1]]).sort().values
    t = exactly(times.numpy())
    alpha_sq = exponential(-(t * Decimal("0.1") + t * t * Decimal("9.95")))
    return Path(VPSDESchedule(total), times, ExactPath(alpha_sq, 1 - alpha_sq))


def flow(total: int) -> Path:
    times = torch.arange(total + 1, dtype=torch.float64) / total
    t = exactly(times.numpy())
    return Path(FlowSchedule(total), times, ExactPath((1 - t) ** 2, t**2))


def ve(total: int) -> Path:
    times = torch.arange(total + 1, dtype=torch.float64) / total
    rate = (Decimal(80) / Decimal("0.002")).ln()
    sigma = Decimal("0.002") * exponential(exactly(times.numpy()) * rate)
    sigma[0] = Decimal(0)
    return Path(VESchedule(total), times, ExactPath(np.full(total + 1, Decimal(1)), sigma**2))


PUBLISHED = [(name, total) for name in SCHEDULES for total in (1000, 4000)]
OTHERS = {"sqrt_linear": sqrt_linear, "vp_sde": vp_sde, "flow": flow, "ve": ve}


@functools.cache
def path(name: str, total: int) -> Path:
    return OTHERS[name](total) if name in OTHERS else published(name, total)


every_path = pytest.mark.parametrize(("name", "total"), [*PUBLISHED, *[(name, 1000) for name in OTHERS]])


# schedules and the kernel


@every_path
def test_amplitudes_are_exact(name: str, total: int):
    found, exact = path(name, total).schedule.levels(path(name, total).times), path(name, total).exact
    assert relative_error(found.alpha, rounded(exact.alpha)) <= TOLERANCE
    assert relative_error(found.sigma, rounded(exact.sigma)) <= TOLERANCE


@every_path
def test_signal_to_noise_ratio_is_exact(name: str, total: int):
    """A relative error of the ratio is an absolute one of its logarithm."""
    exact = path(name, total).exact
    levels = path(name, total).schedule.levels(path(name, total).times)
    inner = (exact.alpha_sq != 0) & (exact.sigma_sq != 0)
    ratio = exact.alpha_sq[inner] / exact.sigma_sq[inner]
    log_snr = levels.log_snr[torch.from_numpy(inner)]
    assert float((log_snr - rounded(natural_log(ratio))).abs().max()) <= TOLERANCE
    assert relative_error(levels.noise_variance[torch.from_numpy(inner)], rounded(1 / ratio)) <= TOLERANCE
    assert bool(levels.log_snr[torch.from_numpy(exact.sigma_sq == 0)].eq(torch.inf).all())
    assert bool(levels.log_snr[torch.from_numpy(exact.alpha_sq == 0)].eq(-torch.inf).all())


@every_path
def test_times_are_found_by_their_exact_log_snr(name: str, total: int):
    exact, times = path(name, total).exact, path(name, total).times
    inner = (exact.alpha_sq != 0) & (exact.sigma_sq != 0)
    log_snr = rounded(natural_log(exact.alpha_sq[inner] / exact.sigma_sq[inner]))
    assert relative_error(path(name, total).schedule.time(log_snr), times[torch.from_numpy(inner)]) <= TOLERANCE


@every_path
def test_forward_variance_is_exact_at_every_stride(name: str, total: int):
    its = path(name, total)
    s, t = its.pairs
    exact = its.exact
    beta = exact.sigma_sq[t] - exact.alpha_sq[t] / exact.alpha_sq[s] * exact.sigma_sq[s]
    assert relative_error(its.schedule.variance_between(its.times[s], its.times[t]), rounded(beta)) <= TOLERANCE
    same = its.times[1:]
    assert torch.equal(its.schedule.variance_between(same, same), torch.zeros_like(same))


@every_path
def test_kernel_is_exact_at_every_stride(name: str, total: int):
    """Cosine, t = 1000 to s = 1 at eta = 1, is where ``sigma_s^2 - lambda^2`` loses all digits."""
    its = path(name, total)
    errors = kernel_errors(its.exact, its.schedule, *its.pairs, its.times)
    assert len(errors) == 1 + 3 * len(ETAS)
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


def test_steps_of_the_cosine_schedule_are_exact_however_short_they_are():
    """``1 - f(n/N) / f((n-1)/N)`` of N = 1,000,000, the first and the last; log alpha adds up over all of them."""
    total, nodes = 1_000_000, [1, 2, 3, 500_000, 999_998, 999_999]
    times = torch.tensor(nodes, dtype=torch.float64)
    schedule = CosineSchedule(total)
    found = schedule.variance_between((times - 1) / total, times / total)
    turn = mpmath.pi / 2 / mpmath.mpf("1.008")
    f = {
        n: mpmath.cos((mpmath.mpf(n) / total + mpmath.mpf("0.008")) * turn) ** 2
        for n in {*nodes, *(n - 1 for n in nodes)}
    }
    exact = torch.tensor([float(1 - f[n] / f[n - 1]) for n in nodes], dtype=torch.float64)
    assert relative_error(found[:3], exact[:3]) <= 1e-12
    # further on the sum is known to 1e-16 of its size, and its differences to 1e-9 of theirs
    assert relative_error(found, exact) <= 1e-8


def test_the_form_that_cancels_would_be_found():
    its = path("cosine", 1000)
    s, t = torch.tensor([1]), torch.tensor([1000])
    levels, exact = its.schedule.levels(its.times), its.exact.steps(s, t)
    lambda_sq = exact["lambda_sq 1.0"]
    assert relative_error((levels.sigma[s] ** 2 - lambda_sq).sqrt(), exact["eps_scale 1.0"]) > 1e-6


# parameterizations


def scalars(its: Path) -> tuple[Tensor, Exact, Exact]:
    """Where there is noise: which nodes, and the exact amplitudes."""
    inner = its.exact.sigma_sq != 0
    return torch.from_numpy(inner), its.exact.alpha[inner], its.exact.sigma[inner]


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "ve"])
@pytest.mark.parametrize(
    "parameterization", [X0(), Eps(), Score(), V(), Velocity(), EDM()], ids=lambda p: type(p).__name__
)
def test_parameterizations_are_exact(name: str, parameterization: Parameterization):
    """x_0, eps and Cov[x_0] from a target that is known exactly; errors relative to the parts of a sum."""
    its = path(name, 1000)
    try:
        parameterization.check(its.schedule)
    except ValueError:
        return
    inner, alpha, sigma = scalars(its)
    level = its.schedule.levels(its.times[inner])
    x_0, eps = Decimal("0.625"), Decimal("-1.375")  # both float64 numbers
    x_t, half = alpha * x_0 + sigma * eps, Decimal("0.5")
    total = square_root(sigma**2 + alpha**2 * half**2)
    target, c_out = {
        X0: lambda: (x_0 + 0 * alpha, 1 + 0 * alpha),
        Eps: lambda: (eps + 0 * alpha, sigma / alpha),
        Score: lambda: (-eps / sigma, sigma**2 / alpha),
        V: lambda: (alpha * eps - sigma * x_0, sigma),
        Velocity: lambda: (eps - x_0 + 0 * alpha, sigma / (alpha + sigma)),
        EDM: lambda: ((sigma / half * x_0 - alpha * half * eps) / total, sigma * half / total),
    }[type(parameterization)]()
    assert relative_error(parameterization.c_out_sq(level), rounded(c_out**2)) <= TOLERANCE
    ones = torch.ones(len(level), 1, dtype=torch.float64)
    found = parameterization.target(float(x_0) * ones, float(eps) * ones, level)[:, 0]
    assert float((found - rounded(target)).abs().max()) <= TOLERANCE
    x_t, target = rounded(x_t)[:, None], rounded(target)[:, None]
    # x_t = alpha x_0 + sigma eps determines each no better than rounding of x_t does: relative to the parts of a sum
    of_noise = isinstance(parameterization, Eps | Score)
    # of what a network says, the noise is known to rounding: no difference of x_t and x_0 that sigma_t divides
    sizes = [
        1 + 2 * rounded(sigma / alpha) if of_noise else 1,
        1 + 1 / rounded(sigma) if isinstance(parameterization, X0) else 2,
    ]
    for found, wanted, size in zip(
        (parameterization.x0(x_t, target, level), parameterization.eps(x_t, target, level)),
        (x_0, eps),
        sizes,
        strict=True,
    ):
        assert float(((found[:, 0] - float(wanted)).abs() / size).max()) <= 1e-12


# solvers


def chain(total: int) -> Tensor:
    """Indices of a chain from N to 1: neighbours at both ends and in the middle, and strides between them."""
    return torch.cat([n + torch.arange(39) for n in (1, total // 10, total // 2, total - 38)]).flip(0)


every_chain = pytest.mark.parametrize(("name", "total"), [*PUBLISHED, ("ve", 1000)])


@every_chain
@pytest.mark.parametrize("kind", [EulerSampler, HeunSampler])
def test_steps_of_euler_and_heun_are_exact(name: str, total: int, kind: type[EulerSampler] | type[HeunSampler]):
    """``sigma_s - alpha_s sigma_t / alpha_t`` of neighbours."""
    its, nodes = path(name, total), chain(total)
    plan = kind(len(nodes)).plan(its.schedule, its.schedule.levels(its.times[nodes]))
    assert isinstance(plan, CallPlan)
    alpha, sigma = its.exact.alpha[nodes], its.exact.sigma[nodes]
    keep = alpha[1:] / alpha[:-1]
    change = rounded(sigma[1:] - keep * sigma[:-1])
    calls = slice(0, -1) if kind is EulerSampler else slice(0, -1, 2)
    assert relative_error(plan.keep[calls], rounded(keep)) <= TOLERANCE
    assert relative_error(plan.weights[calls, 0], change) <= TOLERANCE
    if kind is HeunSampler:
        assert relative_error(plan.weights[1::2, :2], torch.stack([change / 2] * 2, 1)) <= TOLERANCE


@pytest.mark.parametrize("churn", [0.2, 1.0, 100.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "ve"])
def test_the_noise_of_churn_is_exact(name: str, churn: float):
    """``(1 + gamma)^2 - 1`` for gamma = 1e-3 and more.

    Not at the last nodes: where a cosine ends, log-SNR falls by 7000 t, and so is no better known than to 1e-12.
    """
    its, nodes = path(name, 1000), chain(1000)
    plan = EulerSampler(len(nodes), churn=churn).plan(its.schedule, its.schedule.levels(its.times[nodes]))
    gamma = min(Decimal(churn) / len(nodes), Decimal(2).sqrt() - 1)
    raised_sq = (1 + gamma) ** 2 * its.exact.sigma_sq[nodes] / its.exact.alpha_sq[nodes]
    free = raised_sq < its.exact.sigma_sq[-4] / its.exact.alpha_sq[-4]
    raised_sq = raised_sq[free]
    alpha_sq = 1 / (1 + raised_sq) if name != "ve" else 1 + 0 * raised_sq
    inner = nodes[torch.from_numpy(free)]
    scale = square_root(alpha_sq) / its.exact.alpha[inner]
    amplitude = square_root(alpha_sq * raised_sq * (1 - 1 / (1 + gamma) ** 2))
    found = plan.churn[torch.from_numpy(free)]
    assert len(found) > len(nodes) / 2
    assert relative_error(found[:, 0], rounded(scale)) <= TOLERANCE
    assert relative_error(found[:, 1], rounded(amplitude)) <= TOLERANCE


@every_chain
@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_of_dpm_solver_are_exact(name: str, total: int, order: int):
    """``(e^h - 1) / h - 1`` and its like, h = 1e-3."""
    its, nodes = path(name, total), chain(total)
    sampler = DPMSolverSampler(len(nodes), order)
    plan = sampler.plan(its.schedule, its.schedule.levels(its.times[nodes]))
    assert isinstance(plan, CallPlan)
    lam = natural_log(its.exact.alpha_sq[nodes] / its.exact.sigma_sq[nodes]) / 2
    ends = np.cumsum([0, *sampler.orders(len(nodes) - 1)])
    whole = [i for i in range(len(ends) - 1) if ends[i + 1] - ends[i] == order]
    start, stop = nodes[ends[:-1][whole]], nodes[ends[1:][whole]]
    h = lam[ends[1:][whole]] - lam[ends[:-1][whole]]
    rows = torch.as_tensor(ends[:-1][whole])
    for j in range(order):
        # the combination after call j lies at (j + 1) / order of the way in lambda
        part = h * (j + 1) / order
        at = exponential(2 * (lam[ends[:-1][whole]] + part))
        alpha_sq, sigma_sq = (at / (1 + at), 1 / (1 + at)) if name != "ve" else (1 + 0 * at, 1 / at)
        if j == order - 1:
            alpha_sq, sigma_sq = its.exact.alpha_sq[stop], its.exact.sigma_sq[stop]
        keep = square_root(alpha_sq / its.exact.alpha_sq[start])
        first = -square_root(sigma_sq) * (exponential(part) - 1)
        slope = -square_root(sigma_sq) * ((exponential(part) - 1) / part - 1)
        weights = {
            (1, 0): [first],
            (2, 0): [first],
            (2, 1): [0 * first, first],
            (3, 0): [first],
            (3, 1): [first - 2 * slope, 2 * slope],
            (3, 2): [first - slope * 3 / 2, 0 * first, slope * 3 / 2],
        }[order, j]
        assert relative_error(plan.keep[rows + j], rounded(keep)) <= TOLERANCE
        exact = torch.stack([rounded(weight) for weight in weights], 1)
        # relative to the largest weight of a call: of order 3, the second call's first is of the order of h^2
        error = (plan.weights[rows + j, : j + 1] - exact).abs() / exact.abs().amax(1, keepdim=True)
        assert float(error.max()) <= TOLERANCE


def exact_adams(nodes: list[float], h: mpmath.mpf) -> list[float]:
    """Weights of ``int_0^1 H e^{-(1 - u) H} m(u) du`` for the polynomial m through the nodes."""
    moments = [1 - mpmath.exp(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k * moments[-1] / h)  # by parts; it costs 18 of 50 digits at H = 1e-6
    if len(nodes) == 2:
        moments[1] = moments[0] / 2  # as published
    powers = mpmath.matrix([[mpmath.mpf(u) ** k for u in nodes] for k in range(len(nodes))])
    return [float(w) for w in mpmath.lu_solve(powers, mpmath.matrix(moments))]


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -1.25], [0.0, -0.75, -2.0], [1.0, 0.0, -1.25], [1.0, 0.0, -0.75, -2.5]])
def test_weights_of_multistep_methods_are_exact_at_every_step(nodes: list[float]):
    """``1 - k M / H`` of the moments' recursion loses ``H^-k`` of the digits."""
    sizes = [1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.1, 0.5, 0.99, 1.0, 1.01, 2.0, 5.0, 20.0]
    for h in torch.tensor(sizes, dtype=torch.float64):
        found = adams_weights(torch.tensor(nodes, dtype=torch.float64), h)
        exact = torch.tensor(exact_adams(nodes, mpmath.mpf(float(h))), dtype=torch.float64)
        assert relative_error(found, exact) <= TOLERANCE, float(h)


@every_chain
@pytest.mark.parametrize("sde", [False, True], ids=["ode", "sde"])
def test_steps_of_dpm_solver_pp_are_exact(name: str, total: int, sde: bool):
    """``1 - e^-2h`` of neighbours; order 1, whose one weight is ``alpha_s (1 - e^-H)``."""
    its, nodes = path(name, total), chain(total)
    plan = DPMSolverPPSampler(len(nodes), 1, sde=sde).plan(its.schedule, its.schedule.levels(its.times[nodes]))
    assert isinstance(plan, LinearPlan)
    alpha, sigma = its.exact.alpha[nodes], its.exact.sigma[nodes]
    decay = (alpha / sigma)[:-1] / (alpha / sigma)[1:]  # e^-h
    added = decay if sde else 1 + 0 * decay  # e^-(H - h)
    assert relative_error(plan.keep[:-1], rounded(sigma[1:] / sigma[:-1] * added)) <= TOLERANCE
    assert relative_error(plan.weights[:-1, 0], rounded(alpha[1:] * (1 - decay * added))) <= TOLERANCE
    assert relative_error(plan.noise[:-1], rounded(sigma[1:] * square_root(1 - added**2))) <= TOLERANCE


@pytest.mark.parametrize(("name", "total"), PUBLISHED)
def test_steps_of_euler_maruyama_are_exact(name: str, total: int):
    """``log alpha_s - log alpha_t`` of neighbours."""
    its, nodes = path(name, total), chain(total)
    plan = EulerMaruyamaSampler(len(nodes)).plan(its.schedule, its.schedule.levels(its.times[nodes]))
    alpha_sq = np.concatenate([its.exact.alpha_sq[nodes], [Decimal(1)]])
    b, variance = natural_log(alpha_sq[1:] / alpha_sq[:-1]), its.exact.sigma_sq[nodes]
    assert relative_error(plan.noise, rounded(square_root(b))) <= TOLERANCE
    assert relative_error(plan.weights[:, 0], rounded(b * its.exact.alpha[nodes] / variance)) <= TOLERANCE
    keep = 1 + b / 2 - b / variance  # passes 0: relative to its parts
    assert float(((plan.keep - rounded(keep)) / rounded(1 + b / variance)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(("name", "total"), PUBLISHED)
def test_steps_of_the_corrector_are_exact(name: str, total: int):
    its, nodes = path(name, total), chain(total)
    plan = PredictorCorrectorSampler(len(nodes)).plan(its.schedule, its.schedule.levels(its.times[nodes]))
    alpha_sq = np.concatenate([its.exact.alpha_sq[nodes][1:], [Decimal(1)]])
    assert relative_error(plan.kept, rounded(alpha_sq[:-1] / alpha_sq[1:])) <= TOLERANCE


# trajectories


@pytest.mark.parametrize("name", ["linear", "cosine", "vp_sde", "ve"])
@pytest.mark.parametrize("rho", [None, 1.0, 7.0])
def test_times_by_noise_level_are_exact(name: str, rho: float | None):
    """log-SNR, or a root of ``sigma / alpha``, are even: found again at the times, whose rounding adds 1e-16 / t."""
    its, count = path(name, 1000), 20
    trajectory = LogSNRTrajectory() if rho is None else KarrasTrajectory(rho)
    first = int((its.times - 1e-3).abs().argmin())
    log_snr = [(its.exact.alpha_sq[i] / its.exact.sigma_sq[i]).ln() for i in (first, -1)]
    if rho is None:
        wanted = [log_snr[0] + (log_snr[1] - log_snr[0]) * i / (count - 1) for i in range(count)]
    else:
        low, high = ((-each / 2 / Decimal(rho)).exp() for each in log_snr)
        wanted = [-2 * Decimal(rho) * (low + (high - low) * i / (count - 1)).ln() for i in range(count)]
    found = its.schedule.log_snr(trajectory.times(its.schedule, count))
    assert float((found - rounded(np.array(wanted))).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_costs_of_the_optimal_trajectory_are_exact(name: str):
    """``log(Sigma / lambda^2)``, between 1e-7 and 10."""
    its = path(name, 1000)
    variance = exactly(np.array([0.25 * n / 1000 for n in range(1, 1001)]))
    s, t = (index[its.pairs[0] > 0][::5] for index in its.pairs)
    costs = step_costs(its.schedule, rounded(variance))
    alpha, exact = its.exact.alpha, its.exact
    beta = exact.sigma_sq[t] - exact.alpha_sq[t] / exact.alpha_sq[s] * exact.sigma_sq[s]
    c = alpha[s] * beta / exact.sigma_sq[t]
    lambda_sq = beta * exact.sigma_sq[s] / exact.sigma_sq[t]
    wanted = natural_log((lambda_sq + c**2 * variance[t - 1]) / lambda_sq)
    assert float(costs[t, s].min()) < 1e-5
    assert relative_error(costs[t, s], rounded(wanted)) <= TOLERANCE


# likelihood


@pytest.mark.parametrize("sign", [-1, 1])
def test_divergences_of_close_gaussians_are_exact(sign: int):
    """``e^r - 1 - r`` from r = 4e-5 on, the ratio of x_N's variance and the prior's on the linear schedule."""
    r = sign * torch.logspace(math.log10(4e-5), 1, 50, dtype=torch.float64)
    zero = torch.zeros(50, 1, dtype=torch.float64)
    exact = [(mpmath.expm1(mpmath.mpf(float(each))) - mpmath.mpf(float(each))) / 2 for each in r]
    found = gaussian_kl(zero, r[:, None], zero, zero)
    assert relative_error(found, torch.tensor([float(e) for e in exact], dtype=torch.float64)) <= TOLERANCE
    # an image's precision keeps what is left of it: in r, not in 1
    single = gaussian_kl(zero.float(), r[:, None].float(), zero.float(), zero.float())
    assert relative_error(single.double(), torch.tensor([float(e) for e in exact]).double()) < 1e-2


@pytest.mark.parametrize(("name", "total"), PUBLISHED)
def test_the_priors_term_is_exact(name: str, total: int):
    """``(alpha^2 x_0^2 + sigma^2 - 1 - log sigma^2) / 2`` in each pixel."""
    its = path(name, total)
    level = its.schedule.levels(its.times[-1])
    x_0 = torch.tensor([[-1.0], [0.5], [2 / 255]], dtype=torch.float64)
    denoiser = Denoiser(nn.Identity(), its.schedule)
    bound = VariationalBound(denoiser, BetaTilde(denoiser))
    alpha_sq, sigma_sq = its.exact.alpha_sq[-1], its.exact.sigma_sq[-1]
    exact = [(alpha_sq * Decimal(float(x)) ** 2 + sigma_sq - 1 - sigma_sq.ln()) / 2 for x in x_0]
    assert relative_error(bound.prior(x_0, level), rounded(np.array(exact))) <= TOLERANCE


def full(variance: Tensor) -> Covariance:
    return FullCovariance(variance.diag_embed(), variance.shape[1:])


KINDS = {"isotropic": lambda v: IsotropicCovariance(v[:, 0], v.shape[1:]), "diagonal": DiagonalCovariance, "full": full}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("name", "total"), [("linear", 1000), ("cosine", 4000)])
@pytest.mark.parametrize("variance", [0.0, 0.01, 1.0])
def test_transitions_of_the_bound_are_exact(kind, name: str, total: int, variance: float):
    """``tr R^-1 - d + log det R``: in nats 1e-14 a pixel, beside which 1e-10 of the term is much where R is near 1."""
    its = path(name, total)
    s, t = (index[its.pairs[0] > 0][::7] for index in its.pairs)
    levels = its.schedule.levels(its.times)
    kernel = ReverseKernel.from_levels(levels[s], levels[t])  # type: ignore[index]
    d, error = 3, Decimal("0.125")
    step = kernel.covariance(kind(torch.full((len(s), d), variance, dtype=torch.float64)))
    found = gaussian_kl_between(kernel.c[:, None] * float(error) * torch.ones(1, d).double(), kernel.lambda_sq, step)
    exact = its.exact
    beta = exact.sigma_sq[t] - exact.alpha_sq[t] / exact.alpha_sq[s] * exact.sigma_sq[s]
    c, lambda_sq = exact.alpha[s] * beta / exact.sigma_sq[t], beta * exact.sigma_sq[s] / exact.sigma_sq[t]
    ratio = (lambda_sq + c**2 * Decimal(variance)) / lambda_sq
    wanted = rounded(d * (1 / ratio - 1 + natural_log(ratio) + (c * error) ** 2 / lambda_sq / ratio) / 2)
    assert float(((found - wanted).abs() - TOLERANCE * wanted).max()) <= d * 1e-14


@pytest.mark.parametrize("deviation", [1e-4, 2e-3, 0.05, 1.0, 30.0])
def test_masses_of_pixels_are_exact(deviation: float):
    """Differences of two distribution functions, from bins of 80 deviations to those of 1e-4, and far out."""
    pixels = torch.arange(0, 256, 15, dtype=torch.float64)
    x_0 = (pixels / 127.5 - 1)[:, None]
    mean = torch.linspace(-1.1, 1.1, len(x_0), dtype=torch.float64).flip(0)[:, None]
    log_variance = torch.full_like(mean, 2 * math.log(deviation))
    found = pixel_log_mass(x_0, mean, log_variance, DataRange())
    exact = []
    for x, m in zip(x_0[:, 0].tolist(), mean[:, 0].tolist(), strict=True):
        scale = mpmath.exp(-mpmath.mpf(float(log_variance[0])) / 2)
        low, high = ((mpmath.mpf(x) - mpmath.mpf(m) + side * mpmath.mpf(1 / 255)) * scale for side in (-1, 1))
        upper = mpmath.mpf(1) if x > 1 - 1e-3 else mpmath.ncdf(high) if high < 0 else 1 - mpmath.ncdf(-high)
        if low > 0:  # both in the lower tail, where 50 digits are relative
            mass = mpmath.ncdf(-low) - (0 if x > 1 - 1e-3 else mpmath.ncdf(-high))
        else:
            mass = upper - (0 if x < -1 + 1e-3 else mpmath.ncdf(low))
        if x < -1 + 1e-3:
            mass = mpmath.ncdf(high)
        exact.append(float(mpmath.log(mass)))
    # log-masses reach -1e8: relative there, and absolute near 0
    wanted = torch.tensor(exact, dtype=torch.float64)
    assert float(((found - wanted).abs() / (1 + wanted.abs())).max()) <= TOLERANCE


# strategies and guidance that model the step


class Head(nn.Module):
    """The same answer everywhere, ``2 v - 1``, or by label."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        return torch.full_like(features[:, :1], self.value)


class Constant(nn.Module):
    """A network without an opinion."""

    data_shape, feature_channels, num_classes = (1,), 1, 2

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x_t), labels[:, None].to(x_t.dtype)


@pytest.mark.parametrize(("name", "total"), PUBLISHED)
def test_steps_of_a_learned_range_are_exact(name: str, total: int):
    """``exp(v log beta + (1 - v) log beta_tilde)``, of neighbours and over every stride."""
    its, v = path(name, total), Decimal("0.375")
    s, t = (index[its.pairs[0] > 0][::20] for index in its.pairs)
    denoiser = Denoiser(Constant(), its.schedule)
    strategy = LearnedRange(denoiser, lambda channels, shape: Head(float(2 * v - 1)))
    levels = its.schedule.levels(its.times)
    kernel = ReverseKernel.from_levels(levels[s], levels[t])  # type: ignore[index]
    x_t = torch.zeros(len(s), 1, dtype=torch.float64)
    found = strategy.transition(kernel, denoiser, denoiser(x_t, levels[t])).diagonal()[:, 0]
    beta = its.exact.sigma_sq[t] - its.exact.alpha_sq[t] / its.exact.alpha_sq[s] * its.exact.sigma_sq[s]
    beta_tilde = beta * its.exact.sigma_sq[s] / its.exact.sigma_sq[t]
    exact = exponential(v * natural_log(beta) + (1 - v) * natural_log(beta_tilde))
    assert relative_error(found, rounded(exact)) <= TOLERANCE


class Between(StepModel):
    """``Sigma = beta_tilde + share (beta - beta_tilde)``, share 1/2, and 1/4 for the null label."""

    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        share = torch.where(prediction.features == 2, 0.25, 0.5)
        low, high = kernel.lambda_sq[:, None], kernel.beta[:, None]
        return DiagonalCovariance(low + share * (high - low))


@pytest.mark.parametrize(("name", "total"), PUBLISHED)
def test_guided_steps_of_a_step_model_are_exact(name: str, total: int):
    """C is found by subtracting lambda^2 from a step, which cancels, and the step by adding it: nothing is lost."""
    its, weight = path(name, total), 1.5
    s, t = (index[its.pairs[0] > 0][::20] for index in its.pairs)
    denoiser = Denoiser(Constant(), its.schedule, data_range=DataRange(None, None, None))
    guidance, strategy = ClassifierFreeGuidance(denoiser, 2, weight), Between(denoiser)
    levels = its.schedule.levels(its.times)
    kernel = ReverseKernel.from_levels(levels[s], levels[t])  # type: ignore[index]
    x_t = torch.zeros(len(s), 1, dtype=torch.float64)
    prediction = guidance.predict(denoiser, strategy, x_t, levels[t], torch.zeros(len(s), dtype=torch.long))
    found = guidance.transition(kernel, denoiser, strategy, prediction).diagonal()[:, 0]
    beta = its.exact.sigma_sq[t] - its.exact.alpha_sq[t] / its.exact.alpha_sq[s] * its.exact.sigma_sq[s]
    beta_tilde = beta * its.exact.sigma_sq[s] / its.exact.sigma_sq[t]
    share = Decimal("0.25") + Decimal(weight) * Decimal("0.25")
    assert relative_error(found, rounded(beta_tilde + share * (beta - beta_tilde))) <= TOLERANCE


# the oracle


@pytest.mark.parametrize("name", ["linear", "cosine", "ve"])
def test_the_oracles_moments_are_exact(name: str):
    """``s - alpha^2 s^2 / (alpha^2 s + sigma^2)`` at both ends, and two components that x_t tells apart or does not."""
    its = path(name, 1000)
    means, variances, weights = [-0.75, 0.5], [0.0625, 0.25], [0.25, 0.75]
    mixture = GaussianMixture([[mean] for mean in means], variances, weights)
    nodes = [1, 2, 30, 300, 700, 999, 1000]
    level = its.schedule.levels(its.times[nodes])
    x_t = (level.alpha * 0.2 + level.sigma * 0.7)[:, None]
    mean, covariance = mixture.posterior(x_t, level.alpha, level.sigma)
    density, score = (of(x_t, level.alpha, level.sigma) for of in (mixture.log_density, mixture.score))
    network = OracleNetwork((1,), mixture, its.schedule, parameterization=Eps(), num_features=1)
    eps = Denoiser(network, its.schedule)(x_t, level).eps
    for row, n in enumerate(nodes):
        alpha, sigma_sq = its.exact.alpha[n], its.exact.sigma_sq[n]
        x = Decimal(float(x_t[row]))
        joint, each = [], []
        for mu, s, w in zip(*(map(Decimal, values) for values in (means, variances, weights)), strict=True):
            total = alpha**2 * s + sigma_sq
            off = x - alpha * mu
            joint.append(w * (-(off**2) / total / 2).exp() / (2 * Decimal(str(mpmath.pi)) * total).sqrt())
            each.append((mu + alpha * s * off / total, s - alpha**2 * s**2 / total))
        m = sum(p * mk for p, (mk, _) in zip(joint, each, strict=True)) / sum(joint)
        second = sum(p * (c + mk**2) for p, (mk, c) in zip(joint, each, strict=True)) / sum(joint)
        for found, exact in [
            (covariance[row, 0, 0], second - m**2),
            (mean[row, 0], m),
            (density[row], sum(joint).ln()),
            (score[row, 0], (alpha * m - x) / sigma_sq),
            (eps[row, 0], (x - alpha * m) / sigma_sq.sqrt()),
        ]:
            assert float(found) == pytest.approx(float(exact), rel=TOLERANCE, abs=0)


def test_decimal_has_fifty_digits():
    assert decimal.getcontext().prec == 50
    assert (Decimal(2).sqrt() ** 2 - 2).copy_abs() < Decimal("1e-48")
