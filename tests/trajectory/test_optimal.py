"""Dynamic programming against brute force, and what optimal times are worth in the bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import IsotropicCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.likelihood import VariationalBound
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0, Eps, Parameterization, Velocity
from optcov.sampler.noise import NoiseStream
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule
from optcov.trajectory import EvenTrajectory, OptimalNLLTrajectory, OptimalTrajectory
from optcov.trajectory.optimal import monotone_variance, step_costs
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.analytic import Analytic
from optcov.variance.base import Clean, VarianceStrategy
from optcov.variance.fixed import Beta

LINE = GaussianMixture([[-0.6], [0.1], [0.5]], [0.01, 0.04, 0.0025], [0.5, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(5))
def test_shortest_paths_are_those_of_brute_force(seed: int):
    total = 8
    cost = torch.rand(total + 1, total + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    paths = ShortestPaths(cost)
    for edges in range(1, total + 1):
        every = [(0, *inner, total) for inner in itertools.combinations(range(1, total), edges - 1)]
        length = {path: sum(float(cost[t, s]) for s, t in itertools.pairwise(path)) for path in every}
        best = min(length, key=length.__getitem__)
        assert paths.nodes(edges) == list(best[1:])
        assert paths.totals[edges - 1] == pytest.approx(length[best], rel=1e-12)


def test_paths_that_do_not_exist_and_costs_that_are_none():
    cost = torch.full((4, 4), math.inf, dtype=torch.float64)
    cost[1, 0] = cost[3, 1] = 1.0
    paths = ShortestPaths(cost)
    assert paths.nodes(2) == [1, 3]
    for edges in (1, 3):
        with pytest.raises(ValueError, match=rf"path of finite cost .*\(got {edges}\)"):
            paths.nodes(edges)
    with pytest.raises(ValueError, match=r"costs must be numbers \(got NaN for 1 steps\)"):
        ShortestPaths(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]))


def posterior_variance(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of a quadrature over x_t, and Var[x_0 | x_t] at its points."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    density = LINE.log_density(x, alpha, sigma).exp()
    return density / density.sum(), LINE.posterior(x, alpha, sigma)[1][:, 0, 0]


def exact_costs(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """``E[C_n]``, and ``E log(Sigma / lambda^2)`` at [t, s] for the exact state-dependent C: twice a bound's term."""
    reach = 6 * max(1.0, float(schedule.sigma(schedule.grid()[-1])))
    x = torch.linspace(-reach, reach, 1501, dtype=torch.float64)[:, None]
    times = schedule.grid()
    variances, costs = [], torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i, t in enumerate(times):
        weight, variance = posterior_variance(schedule, t, x)
        variances.append(weight @ variance)
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        for j, s in enumerate(times[:i]):  # DDPM's formulas, on any path
            alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
            beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
            beta_tilde, c = beta * (sigma_s / sigma_t) ** 2, alpha_s * beta / sigma_t**2
            costs[i, j] = weight @ torch.log1p(c**2 * variance / beta_tilde)
    return torch.stack(variances), costs


def oracle(schedule: NoiseSchedule, parameterization: type[Parameterization] = Eps) -> Denoiser:
    network = OracleNetwork((1,), LINE, schedule, parameterization=parameterization(), num_features=1)
    return Denoiser(network, schedule, parameterization()).eval()


def fitted(
    schedule: NoiseSchedule, variance: Tensor, parameterization: type[Parameterization] = Eps
) -> OptimalTrajectory:
    denoiser = oracle(schedule, parameterization)
    strategy = Analytic(denoiser)
    strategy.eps_variance[1:] = variance / denoiser.parameterization.c_out_sq(schedule.levels(schedule.grid()))
    strategy.eps_variance_se[:] = 1e-9
    trajectory = OptimalTrajectory()
    trajectory.fit(denoiser, strategy, Clean([]))
    return trajectory


def along(costs: Tensor, times: Tensor) -> float:
    nodes = (times * len(costs)).round().long().tolist()
    return sum(float(costs[t - 1, s - 1]) for s, t in itertools.pairwise(nodes))


PATHS = [
    (LinearSchedule(40), Eps),
    (CosineSchedule(40), Eps),
    (CosineSchedule(40), X0),
    (FlowSchedule(40), Velocity),
    (VESchedule(40, 0.01, 5.0), X0),
]


@pytest.mark.parametrize(
    ("schedule", "parameterization"), PATHS, ids=[f"{type(path).__name__}-{kind.__name__}" for path, kind in PATHS]
)
def test_optimal_beats_even_at_every_number_of_steps(schedule: NoiseSchedule, parameterization: type[Parameterization]):
    variance, costs = exact_costs(schedule)
    trajectory = fitted(schedule, variance, parameterization)
    theorem = step_costs(schedule, variance)[1:, 1:]
    gains, gains_of_theorem = [], []
    for num_steps in range(2, 41):
        times = trajectory.times(schedule, num_steps)
        assert len(times) == num_steps
        assert (times[0], times[-1]) == (1 / 40, 1)
        even = EvenTrajectory().times(schedule, num_steps)
        gains.append(along(costs, even) - along(costs, times))
        gains_of_theorem.append(along(theorem, even) - along(theorem, times))
    for each in (gains, gains_of_theorem):
        assert each[0] == each[-1] == 0  # no choice
        assert max(each) > 0.1
    assert min(gains_of_theorem) >= 0
    # the theorem's C is the mean over x_t: of three steps on the variance-exploding path it misjudges one by 0.04 nats
    assert min(gains) >= (-0.05 if isinstance(schedule, VESchedule) else 0)
    assert trajectory.times(schedule, 1).tolist() == [1]


def test_costs_are_those_of_the_theorem():
    schedule = CosineSchedule(12)
    variance = torch.linspace(0.01, 0.3, 12, dtype=torch.float64)
    cost = step_costs(schedule, variance)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha(schedule.grid()) ** 2])
    for s, t in ((1, 2), (1, 12), (5, 9), (11, 12)):
        beta = 1 - bar[t] / bar[s]
        beta_tilde = (1 - bar[s]) / (1 - bar[t]) * beta
        sigma = beta_tilde + (bar[s].sqrt() * beta / (1 - bar[t])) ** 2 * variance[t - 1]
        assert float(cost[t, s]) == pytest.approx(float(torch.log(sigma / beta_tilde)), rel=1e-9)
    assert cost[1, 0] == 0
    assert cost[2:, 0].isinf().all()


@pytest.mark.parametrize("schedule", [FlowSchedule(12), VESchedule(12, 0.05, 5.0)], ids=["flow", "ve"])
def test_costs_are_log_determinants_on_every_path(schedule: NoiseSchedule):
    """``log(Sigma / lambda^2)`` of the kernel's own step, up to a flow's end, where there is no signal."""
    variance = torch.linspace(0.01, 0.3, 12, dtype=torch.float64)
    cost, levels = step_costs(schedule, variance), schedule.levels(schedule.grid())
    for s, t in ((1, 2), (1, 12), (5, 9), (11, 12)):
        kernel = ReverseKernel.from_levels(levels[s - 1], levels[t - 1])
        step = kernel.covariance(IsotropicCovariance(variance[t - 1 : t], (1,)))
        assert_close(cost[t, s], step.logdet()[0] - kernel.lambda_sq.log(), rtol=1e-9, atol=1e-12)
    assert not cost.isnan().any()


def test_a_noisy_curve_is_mended_where_it_is_uncertain():
    """Values below 0 (Gamma above 1) at large times would make steps from there look free."""
    schedule = LinearSchedule(40)
    variance, costs = exact_costs(schedule)
    r = schedule.log_snr(schedule.grid()).neg().exp()
    g = torch.Generator().manual_seed(0)
    error = torch.full((40,), 2e-4, dtype=torch.float64)
    noisy = variance / r + error * torch.randn(40, dtype=torch.float64, generator=g)
    noisy[-3] = -1e-3
    mended = monotone_variance(oracle(schedule), noisy, error)
    assert (mended.diff() >= 0).all()
    assert (mended > 0).all()
    assert (mended <= 1).all()
    trusted = r * error < 0.01 * variance  # where the measurement is good, it is kept
    assert trusted.sum() > 10
    assert (mended / variance - 1)[trusted].abs().max() < 0.05
    paths = ShortestPaths(step_costs(schedule, mended))
    exact = fitted(schedule, variance)
    for num_steps in (4, 8, 16):
        times = torch.tensor(paths.nodes(num_steps)) / 40
        best = along(costs, exact.times(schedule, num_steps))
        assert along(costs, times.double()) < 1.05 * best
    with pytest.raises(ValueError, match=r"trajectory=optimal must have a positive variance .*\(got none\)"):
        monotone_variance(oracle(schedule), -error, error)


@pytest.mark.parametrize(
    ("data_range", "largest"), [(DataRange(), 1.0), (DataRange(0.0, 1.0), 0.25), (DataRange(None, None), 3.0)]
)
def test_variances_are_clamped_at_the_largest_that_data_can_have(data_range: DataRange, largest: float):
    schedule = LinearSchedule(40)
    high = 3 * schedule.log_snr(schedule.grid()).exp()
    denoiser = Denoiser(oracle(schedule).network, schedule, data_range=data_range)
    found = monotone_variance(denoiser, high, high * 0.01)
    assert_close(found, torch.full_like(found, largest), rtol=1e-9, atol=0)


def test_least_measured_bound_is_found_and_beats_even():
    schedule = LinearSchedule(24)
    denoiser = oracle(schedule)
    strategy = Beta(denoiser)
    trajectory = OptimalNLLTrajectory(num_candidates=None, clip_x0=False)
    trajectory.fit(
        denoiser, strategy, Clean([LINE.sample(200, torch.Generator().manual_seed(s)) for s in (1, 2)], seed=3)
    )
    x_0 = LINE.sample(2000, torch.Generator().manual_seed(4))
    bound = VariationalBound(denoiser, strategy, clip_x0=False)

    def total(times: Tensor) -> float:
        return float(bound.terms(x_0, times, NoiseStream(5, range(2000), (1,), dtype=torch.float64)).sum(0).mean())

    for num_steps in (2, 3, 5, 10, 24):
        times = trajectory.times(schedule, num_steps)
        assert len(times) == num_steps
        assert times[-1] == 1
        even = EvenTrajectory().times(schedule, num_steps)
        assert total(times) <= total(even) + 0.02, num_steps  # of other images and other noise
    assert total(trajectory.times(schedule, 5)) < total(EvenTrajectory().times(schedule, 5)) - 0.15


def test_candidates_keep_both_ends_and_bound_the_steps():
    schedule = LinearSchedule(200)
    denoiser = oracle(schedule)
    trajectory = OptimalNLLTrajectory(num_candidates=11, clip_x0=False)
    trajectory.fit(denoiser, Beta(denoiser), Clean([LINE.sample(20, torch.Generator().manual_seed(1))]))
    every = (trajectory.times(schedule, 11) * 200).round().int().tolist()
    assert every == np.round(np.linspace(1, 200, 11)).astype(int).tolist()
    with pytest.raises(ValueError, match=r"num_candidates must be at least sampler\.num_steps = 12 \(got 11\)"):
        trajectory.times(schedule, 12)


def test_too_few_images_are_refused_by_the_trajectorys_own_key():
    for make, least in ((OptimalTrajectory, 3), (OptimalNLLTrajectory, 1)):
        with pytest.raises(ValueError, match=rf"trajectory\.num_images must be at least {least} \(got {least - 1}\)"):
            make(num_images=least - 1)
    with pytest.raises(ValueError, match=r"trajectory\.num_candidates must be at least 2 \(got 1\)"):
        OptimalNLLTrajectory(num_candidates=1)


@pytest.mark.parametrize("strategy", [Beta, Analytic])
def test_the_curve_is_the_strategys_own_or_measured_by_a_pass(strategy: type[VarianceStrategy]):
    """The strategy's own, if it has one: a path planned by another's would be the best one for var=analytic alone."""
    schedule = LinearSchedule(40)
    denoiser, own = oracle(schedule), strategy(oracle(schedule))
    if isinstance(own, Analytic):  # a curve unlike the measured one
        own.eps_variance[1:] = torch.where(schedule.grid() < 0.7, 1e-6, 0.2) * schedule.log_snr(schedule.grid()).exp()
        own.eps_variance_se[:] = 1e-9
    trajectory = OptimalTrajectory(num_images=200)
    denoiser.cost.reset()
    trajectory.fit(denoiser, own, Clean([LINE.sample(200, torch.Generator().manual_seed(0))], seed=1))
    assert denoiser.cost.nfe == (0 if isinstance(own, Analytic) else 200 * 40)
    variance, costs = exact_costs(schedule)
    found, best = (along(costs, made.times(schedule, 8)) for made in (trajectory, fitted(schedule, variance)))
    assert found > 1.1 * best if isinstance(own, Analytic) else found < 1.05 * best


@pytest.mark.parametrize("trajectory", [OptimalTrajectory(), OptimalNLLTrajectory()])
def test_times_before_the_fit_are_refused(trajectory):
    with pytest.raises(ValueError, match="call its fit first"):
        trajectory.times(LinearSchedule(100), 5)
    with pytest.raises(ValueError, match=r"sampler\.num_steps must lie in .*\(got 101\)"):
        trajectory.check(LinearSchedule(100), 101)
