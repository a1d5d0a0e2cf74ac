"""Dynamic programming against brute force, and what optimal times are worth in the bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optcov.likelihood import VariationalBound
from optcov.oracle import GaussianMixture
from optcov.sampler.noise import NoiseStream
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import EvenTrajectory, OptimalNLLTrajectory, OptimalTrajectory
from optcov.trajectory.optimal import monotone_variance, step_costs
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.analytic import Analytic
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
        with pytest.raises(ValueError, match=f"no path of {edges} steps"):
            paths.nodes(edges)
    with pytest.raises(ValueError, match="costs must be numbers"):
        ShortestPaths(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]))


def posterior_variance(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of a quadrature over x_t, and Var[x_0 | x_t] at its points."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    density = LINE.log_density(x, alpha, sigma).exp()
    return density / density.sum(), LINE.posterior(x, alpha, sigma)[1][:, 0, 0]


def exact_costs(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """``E[C_n]``, and ``E log(Sigma / lambda^2)`` at [t, s] for the exact state-dependent C: twice a bound's term."""
    x = torch.linspace(-6, 6, 6001, dtype=torch.float64)[:, None]
    times = schedule.grid()
    variances, costs = [], torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i, t in enumerate(times):
        weight, variance = posterior_variance(schedule, t, x)
        variances.append(weight @ variance)
        bar_t = schedule.alpha(t) ** 2
        for j, s in enumerate(times[:i]):  # DDPM's formulas, in alpha_bar
            bar_s = schedule.alpha(s) ** 2
            beta = 1 - bar_t / bar_s
            beta_tilde, c = (1 - bar_s) / (1 - bar_t) * beta, bar_s.sqrt() * beta / (1 - bar_t)
            costs[i, j] = weight @ torch.log1p(c**2 * variance / beta_tilde)
    return torch.stack(variances), costs


def fitted(schedule: NoiseSchedule, variance: Tensor, make_oracle) -> OptimalTrajectory:
    denoiser = make_oracle(LINE, schedule)
    strategy = Analytic(denoiser)
    strategy.eps_variance[1:] = variance * schedule.log_snr(schedule.grid()).exp()
    strategy.eps_variance_se[:] = 1e-9
    trajectory = OptimalTrajectory()
    trajectory.fit(denoiser, strategy, [])
    return trajectory


def along(costs: Tensor, times: Tensor) -> float:
    nodes = (times * len(costs)).round().long().tolist()
    return sum(float(costs[t - 1, s - 1]) for s, t in itertools.pairwise(nodes))


@pytest.mark.parametrize("make", [LinearSchedule, CosineSchedule])
def test_optimal_beats_even_at_every_number_of_steps(make, make_oracle):
    schedule = make(40)
    variance, costs = exact_costs(schedule)
    trajectory = fitted(schedule, variance, make_oracle)
    gains = []
    for num_steps in range(2, 41):
        times = trajectory.times(schedule, num_steps)
        assert len(times) == num_steps
        assert (times[0], times[-1]) == (1 / 40, 1)
        gains.append(along(costs, EvenTrajectory().times(schedule, num_steps)) - along(costs, times))
    assert gains[0] == gains[-1] == 0  # no choice
    assert min(gains) >= 0
    assert max(gains) > 0.1
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


def test_a_noisy_curve_is_mended_where_it_is_uncertain(make_oracle):
    """Values below 0 (Gamma above 1) at large times would make steps from there look free."""
    schedule = LinearSchedule(40)
    variance, costs = exact_costs(schedule)
    r = schedule.log_snr(schedule.grid()).neg().exp()
    g = torch.Generator().manual_seed(0)
    error = torch.full((40,), 2e-4, dtype=torch.float64)
    noisy = variance / r + error * torch.randn(40, dtype=torch.float64, generator=g)
    noisy[-3] = -1e-3
    denoiser = make_oracle(LINE, schedule)
    mended = monotone_variance(denoiser, noisy, error)
    assert (mended.diff() >= 0).all()
    assert (mended > 0).all()
    assert (mended <= 1).all()
    trusted = r * error < 0.01 * variance  # where the measurement is good, it is kept
    assert trusted.sum() > 10
    assert (mended / variance - 1)[trusted].abs().max() < 0.05
    paths = ShortestPaths(step_costs(schedule, mended))
    exact = fitted(schedule, variance, make_oracle)
    for num_steps in (4, 8, 16):
        times = torch.tensor(paths.nodes(num_steps)) / 40
        best = along(costs, exact.times(schedule, num_steps))
        assert along(costs, times.double()) < 1.05 * best
    with pytest.raises(ValueError, match="trajectory=optimal must have a positive variance"):
        monotone_variance(denoiser, -error, error)


def test_variances_above_one_are_clamped(make_oracle):
    schedule = LinearSchedule(40)
    high = 3 * schedule.log_snr(schedule.grid()).exp()
    assert (monotone_variance(make_oracle(LINE, schedule), high, high * 0.01) == 1).all()


def test_least_measured_bound_is_found_and_beats_even(make_oracle):
    schedule = LinearSchedule(30)
    denoiser = make_oracle(LINE, schedule)
    strategy = Beta(denoiser)
    trajectory = OptimalNLLTrajectory(num_candidates=None, clip_x0=False)
    trajectory.fit(denoiser, strategy, [LINE.sample(300, torch.Generator().manual_seed(s)) for s in (1, 2)], seed=3)
    x_0 = LINE.sample(4000, torch.Generator().manual_seed(4))
    bound = VariationalBound(denoiser, strategy, clip_x0=False)

    def total(times: Tensor) -> float:
        return float(bound.terms(x_0, times, NoiseStream(5, range(4000), (1,), dtype=torch.float64)).sum(0).mean())

    for num_steps in (2, 3, 5, 10, 30):
        times = trajectory.times(schedule, num_steps)
        assert len(times) == num_steps
        assert times[-1] == 1
        even = EvenTrajectory().times(schedule, num_steps)
        assert total(times) <= total(even) + 0.02, num_steps  # of other images and other noise
    assert total(trajectory.times(schedule, 5)) < total(EvenTrajectory().times(schedule, 5)) - 0.15


def test_candidates_keep_both_ends_and_bound_the_steps(make_oracle):
    schedule = LinearSchedule(200)
    denoiser = make_oracle(LINE, schedule)
    trajectory = OptimalNLLTrajectory(num_candidates=11, clip_x0=False)
    trajectory.fit(denoiser, Beta(denoiser), [LINE.sample(20, torch.Generator().manual_seed(1))])
    every = (trajectory.times(schedule, 11) * 200).round().int().tolist()
    assert every == np.round(np.linspace(1, 200, 11)).astype(int).tolist()
    with pytest.raises(ValueError, match=r"num_candidates must be at least sampler\.num_steps = 12 \(got 11\)"):
        trajectory.times(schedule, 12)


@pytest.mark.parametrize("trajectory", [OptimalTrajectory(), OptimalNLLTrajectory()])
def test_times_before_the_fit_are_refused(trajectory):
    with pytest.raises(ValueError, match="must be fitted before it has times"):
        trajectory.times(LinearSchedule(100), 5)
    with pytest.raises(ValueError, match=r"sampler\.num_steps must lie in .* = 100 \(got 101\)"):
        trajectory.check(LinearSchedule(100), 101)
