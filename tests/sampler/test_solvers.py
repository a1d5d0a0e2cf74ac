"""Solvers of the ODE and the SDE: measured orders, limits that coincide, ends, refusals."""

import math

import pytest
import torch
from scripted import PATHS, Scripted, chain_moments, marginal, solve, white
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import IsotropicCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import Guidance
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPPSampler,
    DPMSolverSampler,
    EulerMaruyamaSampler,
    EulerSampler,
    HeunSampler,
    Model,
    PredictorCorrectorSampler,
    Sampler,
    State,
    UniPCSampler,
)
from optcov.schedule import (
    CosineSchedule,
    LinearSchedule,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
    VPSDESchedule,
)
from optcov.trajectory import EvenTrajectory, KarrasTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Closed
from optcov.variance.fixed import Beta, BetaTilde

MU, V = 0.3, 0.25
GAUSSIAN = GaussianMixture([[MU]], [V])


def evenly_in_log_snr(schedule: NoiseSchedule, count: int, first: float) -> Tensor:
    ends = schedule.log_snr(torch.tensor([first, 1.0], dtype=torch.float64))
    return schedule.time(torch.linspace(*ends.tolist(), count, dtype=torch.float64))


@pytest.fixture(scope="module")
def solution(mixture: GaussianMixture, make_oracle) -> tuple[Denoiser, Tensor, Tensor]:
    """A denoiser, noise, and the end of the ODE from there: third order, 93 steps, an error near 1e-6."""
    denoiser = make_oracle(mixture, VPSDESchedule(1000))
    draws = white(1, 16, 2)
    times = evenly_in_log_snr(denoiser.schedule, 282, 0.02)
    return denoiser, draws, solve(DPMSolverSampler(282, 3), denoiser, times, draws)


def error_of_ode(sampler: Sampler, solution: tuple[Denoiser, Tensor, Tensor], intervals: int) -> float:
    """Mean distance to the solution, with steps even in log-SNR."""
    denoiser, draws, expected = solution
    times = evenly_in_log_snr(denoiser.schedule, intervals + 1, 0.02)
    return float((solve(sampler, denoiser, times, draws) - expected).norm(dim=1).mean())


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (EulerSampler(999), 1),
        (HeunSampler(999), 2),
        (DPMSolverSampler(999, 2), 2),
        (DPMSolverSampler(999, 3), 3),
        (DPMSolverPPSampler(999, 2), 2),
        (DPMSolverPPSampler(999, 3), 3),
        (UniPCSampler(999, 1), 2),  # the corrector adds one
        (UniPCSampler(999, 2), 3),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'order', '')}" if isinstance(value, Sampler) else None,
)
def test_measured_order_of_the_ode(solution: tuple[Denoiser, Tensor, Tensor], sampler: Sampler, order: int):
    """Steps even in log-SNR, from t = 1 to 0.02; the last step to 0 is the same for all.

    0.25 is what the next term of the error leaves of a slope between 48 and 96 steps; a lost order is 1.  DPM-Solver-3
    runs K - 1 = 2 mod 3 calls, where its only lower step is one of order 2, whose local error is of order 3.
    """
    extra = 2 if isinstance(sampler, DPMSolverSampler) and sampler.order == 3 else 0
    coarse, fine = (error_of_ode(sampler, solution, intervals + extra) for intervals in (48, 96))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_half_of_the_second_difference_would_cost_an_order(solution: tuple[Denoiser, Tensor, Tensor], monkeypatch):
    """The 3M formula of published code weighs it so; it is of order 2, ours of 3."""
    from optcov.sampler import multistep

    def halved(nodes: Tensor, H: Tensor) -> Tensor:
        weights = exact(nodes, H)
        if len(nodes) < 3:
            return weights
        first = 1 + torch.expm1(-H) / H
        second = 1 - 2 * first / H  # moment of u^2, which multiplies the second difference below
        u = nodes
        pairs = ((u[0] - u[1]) * (u[0] - u[2]), (u[1] - u[0]) * (u[1] - u[2]), (u[2] - u[0]) * (u[2] - u[1]))
        return weights - second / 2 / torch.stack(pairs)

    exact = multistep.adams_weights
    monkeypatch.setattr(multistep, "adams_weights", halved)
    coarse, fine = (error_of_ode(DPMSolverPPSampler(999, 3), solution, intervals) for intervals in (48, 96))
    assert math.log2(coarse / fine) < 2.4  # with ours above 2.75: see above


class Line(nn.Module):
    """The exact network of N(MU, V), on a line or in each of many dimensions, which predicts x_0."""

    mixture = GAUSSIAN

    def __init__(self, schedule: NoiseSchedule, dim: int = 1) -> None:
        super().__init__()
        self.schedule, self.data_shape, self.feature_channels = schedule, (dim,), dim

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        level = self.schedule.levels(time[0] / 1000)
        gain = level.alpha * V / (level.alpha**2 * V + level.sigma**2)
        return MU + gain * (x_t - level.alpha * MU), x_t


def usual_times(schedule: NoiseSchedule, count: int) -> Tensor:
    """EDM's on a variance-exploding path, even ones elsewhere, from where little signal is left to little noise."""
    if isinstance(schedule, VESchedule):
        return KarrasTrajectory(t_min=0.22).times(schedule, count)
    last = 1.0 if isinstance(schedule, VPSchedule) else 0.98
    return torch.linspace(0.02, last, count, dtype=torch.float64)


def error_of_moments(sampler: Sampler, path: str, intervals: int) -> tuple[float, float]:
    """How far mean and variance are from those of the exact solution from the exact marginal of x_T, signed."""
    denoiser = Denoiser(Line(PATHS[path]), PATHS[path], X0())
    times = usual_times(denoiser.schedule, intervals + 1)
    mean, variance = chain_moments(sampler, BetaTilde(denoiser), denoiser, times, marginal(denoiser, times[-1]))
    first = denoiser.levels(times[0])
    estimate = float((first.alpha * V) ** 2 / (first.alpha**2 * V + first.sigma**2))  # of E[x_0 | x_t], the answer
    return mean - MU, variance - estimate


GIVEN_ORDERS = {
    "euler_churn": (EulerSampler(999, churn=5.0), 1),
    "heun": (HeunSampler(999), 2),
    "heun_churn": (HeunSampler(999, churn=5.0), 2),
    "dpm_solver_3": (DPMSolverSampler(999, 3), 3),
    **{f"dpm_solver_pp_{p}m": (DPMSolverPPSampler(999, p), p) for p in (2, 3)},
    "dpm_solver_pp_2m_sde": (DPMSolverPPSampler(999, 2, sde=True), 2),
    "unipc_2": (UniPCSampler(999, 2), 3),  # the corrector adds one
}


@pytest.mark.parametrize(
    ("name", "path"),
    [*((name, "flow") for name in GIVEN_ORDERS), *((name, "ve") for name in ("heun_churn", "dpm_solver_pp_3m"))],
)
def test_mean_and_variance_converge_in_uneven_steps(name: str, path: str):
    """Of log SNR; at equal log SNR all paths are one, as tests/test_paths.py has it.

    On Gaussian data every draw enters linearly, so the moments of the answer are exact, without sampling.

    The mean's own path, x_0 = mu and eps = 0 throughout, is solved exactly by all.  0.6 is what the next term of the
    error leaves of a slope between 64 and 128 steps; a lost order is 1.  DPM-Solver-3 runs 2 mod 3 calls before the
    last, so that its only lower step is one of order 2, whose local error is of order 3.
    """
    sampler, order = GIVEN_ORDERS[name]
    counts = (65, 128) if name == "dpm_solver_3" else (64, 128)
    (mean, coarse), (_, fine) = (error_of_moments(sampler, path, count) for count in counts)
    assert abs(mean) < 1e-9
    assert abs(fine) > 1e-7, "rounding has no slope"
    assert math.log2(abs(coarse / fine)) > order - 0.6


def test_euler_maruyama_converges_in_mean_and_variance():
    errors = [error_of_moments(EulerMaruyamaSampler(999), "vp_sde", count) for count in (100, 200)]
    for coarse, fine in zip(*errors, strict=True):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("path", ["flow", "ve"])
def test_euler_maruyama_refuses_paths_that_its_sde_is_not_of(make_oracle, path: str):
    """Also where it is asked for samples at once."""
    denoiser = make_oracle(GAUSSIAN, PATHS[path], X0())
    sampler, times = EulerMaruyamaSampler(5), EvenTrajectory().times(denoiser.schedule, 5)
    pattern = r"^schedule must be variance-preserving for .* \(got (Flow|VE)Schedule\): [^\n]*$"
    with pytest.raises(ValueError, match=pattern):
        sampler.check(BetaTilde(denoiser), denoiser.schedule)
    with pytest.raises(ValueError, match=pattern):
        solve(sampler, denoiser, times, white(7, 3, 1))


def assert_first_order_solvers_are_ddim_and_ddpm(denoiser: Denoiser, num_steps: int) -> None:
    num_steps = min(num_steps, denoiser.schedule.num_steps)
    times, draws = EvenTrajectory().times(denoiser.schedule, num_steps), white(num_steps, 5, 2)
    ddim = solve(DDIMSampler(num_steps, clip_x0=False), denoiser, times, draws)
    for sampler in (EulerSampler(num_steps), DPMSolverSampler(num_steps, 1), DPMSolverPPSampler(num_steps, 1)):
        # alpha_N = 5e-5 at the cosine's end costs half the digits
        assert_close(solve(sampler, denoiser, times, draws), ddim, rtol=1e-7, atol=1e-7)
    ddpm = solve(DDPMSampler(num_steps, clip_x0=False), denoiser, times, draws)
    assert_close(solve(DPMSolverPPSampler(num_steps, 1, sde=True), denoiser, times, draws), ddpm, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_first_order_solvers_are_ddim_and_ddpm(mixture: GaussianMixture, make_oracle, schedule, num_steps: int):
    assert_first_order_solvers_are_ddim_and_ddpm(make_oracle(mixture, schedule), num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("path", ["flow", "ve"])
def test_so_they_are_on_other_paths(mixture: GaussianMixture, make_oracle, path: str, num_steps: int):
    assert_first_order_solvers_are_ddim_and_ddpm(make_oracle(mixture, PATHS[path], X0()), num_steps)


SOLVERS = {
    "euler": lambda k: EulerSampler(k),
    "euler_churn": lambda k: EulerSampler(k, churn=20.0, churn_max=50.0, churn_noise=1.01),
    "heun": lambda k: HeunSampler(k),
    "heun_churn": lambda k: HeunSampler(k, churn=20.0),
    **{f"dpm_solver_{p}": lambda k, p=p: DPMSolverSampler(k, min(p, k)) for p in (1, 2, 3)},
    **{f"dpm_solver_pp_{p}m": lambda k, p=p: DPMSolverPPSampler(k, min(p, k)) for p in (2, 3)},
    **{f"dpm_solver_pp_{p}m_sde": lambda k, p=p: DPMSolverPPSampler(k, min(p, k), sde=True) for p in (2, 3)},
    **{f"unipc_{p}": lambda k, p=p: UniPCSampler(k, min(p, k)) for p in (1, 2, 3)},
    "euler_maruyama": lambda k: EulerMaruyamaSampler(k),
    "predictor_corrector": lambda k: PredictorCorrectorSampler(k, corrector_steps=2),
}


REFUSED = {("euler_maruyama", "flow"), ("euler_maruyama", "ve")}
NETWORK_CALLS = {
    **dict.fromkeys(SOLVERS, lambda k: k),
    "heun": lambda k: 2 * k - 1,
    "heun_churn": lambda k: 2 * k - 1,
    "predictor_corrector": lambda k: 3 * k - 2,
}


class Counted(nn.Module):
    """Predicts 0 as an untrained U-Net does, and counts the samples it is asked about."""

    data_shape, feature_channels = (2,), 2

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.samples += len(x_t)
        return 0 * x_t, x_t  # not a number where x_t is none


@pytest.mark.parametrize("num_steps", [1, 2, 3, 11])
@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in SOLVERS for path in ("linear", "flow", "ve") if (name, path) not in REFUSED],
)
def test_calls_are_counted_and_as_many_as_told(name: str, num_steps: int, path: str):
    schedule, network, sampler = PATHS[path], Counted(), SOLVERS[name](num_steps)
    denoiser, times = Denoiser(network, schedule, X0()), EvenTrajectory().times(schedule, num_steps)
    states = list(sampler.steps(denoiser, BetaTilde(denoiser), times, Scripted(white(100, 3, 2))))
    expected = NETWORK_CALLS[name](num_steps)
    if path == "flow" and isinstance(sampler, HeunSampler) and num_steps > 1:
        expected -= 1  # no signal is left at t = 1, where its step is Euler's
    assert denoiser.cost.nfe == denoiser.cost.ne == network.samples == 3 * expected
    assert [state.i for state in states] == list(range(1, sampler.num_updates(schedule, times) + 1))
    assert torch.isfinite(states[-1].x).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_few_steps_are_finite_on_every_schedule(mixture, make_oracle, schedule, name: str):
    denoiser = make_oracle(mixture, schedule)
    times = EvenTrajectory().times(schedule, 3)
    x = solve(SOLVERS[name](3), denoiser, times, white(100, 20, 2).float())
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_point_is_found_by_all(make_oracle, name: str):
    """The last step returns E[x_0 | x_t], which is the point wherever x_t is."""
    denoiser = make_oracle(GaussianMixture([[0.2, -0.4]], [1e-10]), LinearSchedule(100))
    times = EvenTrajectory().times(denoiser.schedule, 10)
    x = solve(SOLVERS[name](10), denoiser, times, white(100, 5, 2))
    assert_close(x, torch.tensor([0.2, -0.4], dtype=torch.float64).expand(5, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("calls", range(12))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders_of_dpm_solver_share_all_calls(order: int, calls: int):
    orders = DPMSolverSampler(20, order).orders(calls)
    assert sum(orders) == calls
    assert orders == sorted(orders, reverse=True)
    published = {3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 7: [3, 3, 1]}  # DPM-Solver-fast
    if order == 3 and calls in published:
        assert orders == published[calls]


@pytest.mark.parametrize("step", [1, 3, 8])
def test_langevin_steps_have_the_known_stationary_variance(step: int):
    """With g = (x - alpha mu) / v they tend to ``v (1 + alpha_{s|r}^2 snr^2)``, wherever they start.

    Norms are sharp in 4096 dimensions.
    """
    schedule = CosineSchedule(10)
    denoiser = Denoiser(Line(schedule, 4096), schedule, X0())
    times = schedule.grid()
    sampler = PredictorCorrectorSampler(10, snr=0.4, corrector_steps=40)
    s, below = times[step - 1], times[step - 2] if step > 1 else times.new_zeros(())
    v = schedule.alpha(s) ** 2 * V + schedule.sigma(s) ** 2
    plan = sampler.plan(schedule, denoiser.levels(times).flip())
    noise = Scripted(white(41, 4, 4096, seed=1))  # the first for the predictor
    model = Model(denoiser, BetaTilde(denoiser), Guidance(), None, noise)
    x = sampler.step(model, plan, State(9 - step, white(1, 4, 4096)[0])).x
    expected = v * (1 + (schedule.alpha(s) / schedule.alpha(below)) ** 2 * 0.4**2)
    assert x.var().item() == pytest.approx(expected.item(), rel=0.05)  # 16384 numbers: 1.1 % each standard error
    assert x.mean().item() == pytest.approx(MU * schedule.alpha(s).item(), abs=0.05)


class ExactLine(Closed):
    """The exact C of `Line`."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> IsotropicCovariance:
        level, x_t = prediction.level, prediction.x_t
        variance = V * level.sigma**2 / (level.alpha**2 * V + level.sigma**2)
        return IsotropicCovariance(variance.expand(len(x_t)), x_t.shape[1:])


@pytest.mark.parametrize("path", ["linear", "flow", "ve"])
def test_predictor_and_corrector_keep_mean_and_variance_on_every_path(path: str):
    """Up to the share snr^2 = 1 % by which Langevin steps overshoot, and 0.6 % of 65,536 numbers."""
    denoiser = Denoiser(Line(PATHS[path], 4096), PATHS[path], X0(), data_range=DataRange(None, None, None))
    times = usual_times(PATHS[path], 8)
    mean, std = marginal(denoiser, times[-1])
    draws = white(2 * 8, 16, 4096)
    sampler = PredictorCorrectorSampler(8, snr=0.1)
    first = denoiser.levels(times[0])
    left = V * first.sigma**2 / (first.alpha**2 * V + first.sigma**2)  # what x_0 has beyond its estimate

    def answer(strategy: Closed) -> Tensor:
        return sampler.sample(denoiser, strategy, times, Scripted(draws[1:]), start=mean + std * draws[0])

    assert answer(ExactLine(denoiser)).mean().item() == pytest.approx(MU, abs=0.01)
    assert float(answer(ExactLine(denoiser)).var() + left) == pytest.approx(V, rel=0.025)
    assert float(answer(BetaTilde(denoiser)).var() + left) < 0.9 * V


def test_without_corrector_steps_it_is_ddpm(mixture, make_oracle):
    schedule = LinearSchedule(100)
    denoiser = make_oracle(mixture, schedule)
    times, draws = EvenTrajectory().times(schedule, 6), white(6, 5, 2)
    pair = (PredictorCorrectorSampler(6, corrector_steps=0), DDPMSampler(6))
    with_beta = [sampler.sample(denoiser, Beta(denoiser), times, Scripted(draws)) for sampler in pair]
    assert torch.equal(*with_beta)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "predictor_corrector"])
def test_solvers_refuse_a_variance_they_would_ignore(mixture, make_oracle, name: str):
    denoiser = make_oracle(mixture, LinearSchedule(100))
    sampler = SOLVERS[name](5)
    sampler.check(BetaTilde(denoiser), denoiser.schedule)
    for strategy in (Beta(denoiser), Analytic(denoiser)):
        with pytest.raises(ValueError, match=rf"^var must be .*\(got {type(strategy).__name__}\): set var=beta_tilde"):
            sampler.check(strategy, denoiser.schedule)


@pytest.mark.parametrize(
    ("sampler", "argument", "value"),
    [
        (EulerSampler, "churn", -1.0),
        (HeunSampler, "churn_min", -0.5),
        (HeunSampler, "churn_max", -0.5),
        (EulerSampler, "churn_noise", -1.0),
        (DPMSolverSampler, "order", 4),
        (DPMSolverPPSampler, "order", 0),
        (UniPCSampler, "order", -1),
        (PredictorCorrectorSampler, "snr", 0.0),
        (PredictorCorrectorSampler, "snr", math.nan),
        (PredictorCorrectorSampler, "corrector_steps", -1),
        *[(s, "num_steps", 0) for s in (EulerSampler, HeunSampler, EulerMaruyamaSampler, DPMSolverPPSampler)],
    ],
)
def test_refusals_name_the_argument_and_the_value(sampler: type, argument: str, value: float):
    with pytest.raises(ValueError, match=rf"^sampler\.{argument} must .*\(got {value}\): "):
        sampler(**{"num_steps": 10, argument: value})


@pytest.mark.parametrize("sampler", [DPMSolverSampler, DPMSolverPPSampler, UniPCSampler])
def test_an_order_above_the_steps_is_refused(sampler: type):
    with pytest.raises(ValueError, match=r"sampler\.order must be at most sampler\.num_steps = 2 \(got 3\)"):
        sampler(2, order=3)
