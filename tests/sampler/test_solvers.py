"""Solvers of the ODE and the SDE: measured orders, limits that coincide, ends, refusals."""

import math

import pytest
import torch
from scripted import Scripted, chain_moments, solve, white
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture
from optcov.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPPSampler,
    DPMSolverSampler,
    EulerMaruyamaSampler,
    EulerSampler,
    HeunSampler,
    PredictorCorrectorSampler,
    Sampler,
    UniPCSampler,
)
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, VPSDESchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.fixed import Beta, BetaTilde

MU, V = 0.3, 0.25
GAUSSIAN = GaussianMixture([[MU]], [V])


def evenly_in_log_snr(schedule: NoiseSchedule, count: int, first: float) -> Tensor:
    ends = schedule.log_snr(torch.tensor([first, 1.0], dtype=torch.float64))
    return schedule.time(torch.linspace(*ends.tolist(), count, dtype=torch.float64))


def measured_order(errors: list[float]) -> float:
    """Slope of the logarithm of the error against that of the step, by least squares, for steps that halve."""
    x = -torch.arange(len(errors), dtype=torch.float64) * math.log(2)
    y = torch.tensor(errors, dtype=torch.float64).abs().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.fixture(scope="module")
def fine(mixture: GaussianMixture, make_oracle) -> tuple[Denoiser, Tensor, Tensor]:
    """A denoiser, noise, and the end of the ODE from there: third order, 750 steps, an error near 1e-7."""
    denoiser = make_oracle(mixture, VPSDESchedule(1000))
    draws = white(1, 16, 2)
    times = evenly_in_log_snr(denoiser.schedule, 2251, 0.02)
    return denoiser, draws, solve(DPMSolverSampler(2251, 3), denoiser, times, draws)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (EulerSampler(999), 1),
        (HeunSampler(999), 2),
        (DPMSolverSampler(999, 1), 1),
        (DPMSolverSampler(999, 2), 2),
        (DPMSolverSampler(999, 3), 3),
        (DPMSolverPPSampler(999, 1), 1),
        (DPMSolverPPSampler(999, 2), 2),
        (DPMSolverPPSampler(999, 3), 3),
        (UniPCSampler(999, 1), 2),  # the corrector adds one
        (UniPCSampler(999, 2), 3),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'order', '')}" if isinstance(value, Sampler) else None,
)
def test_measured_order_of_the_ode(fine: tuple[Denoiser, Tensor, Tensor], sampler: Sampler, order: int):
    """Steps even in log-SNR, from t = 1 to 0.02; the last step to 0 is the same for all.

    0.25 is what the next term of the error leaves of a slope between 48 and 192 steps; a lost order is 1.  DPM-Solver-3
    runs K - 1 = 2 mod 3 calls, where its only lower step is one of order 2, whose local error is of order 3.
    """
    denoiser, draws, expected = fine
    errors = []
    for intervals in (48, 96, 192):
        count = intervals + (3 if isinstance(sampler, DPMSolverSampler) and sampler.order == 3 else 1)
        answer = solve(sampler, denoiser, evenly_in_log_snr(denoiser.schedule, count, 0.02), draws)
        errors.append(float((answer - expected).norm(dim=1).mean()))
    assert measured_order(errors) == pytest.approx(order, abs=0.25)


def test_half_of_the_second_difference_would_cost_an_order(fine: tuple[Denoiser, Tensor, Tensor], monkeypatch):
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
    denoiser, draws, expected = fine
    errors = []
    for intervals in (48, 96, 192):
        times = evenly_in_log_snr(denoiser.schedule, intervals + 1, 0.02)
        errors.append(float((solve(DPMSolverPPSampler(999, 3), denoiser, times, draws) - expected).norm(dim=1).mean()))
    assert measured_order(errors) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (EulerMaruyamaSampler(999), 1),
        (DPMSolverPPSampler(999, 1, sde=True), 1),
        (DPMSolverPPSampler(999, 2, sde=True), 2),
        (EulerSampler(999, churn=10.0), 1),
        (HeunSampler(999, churn=10.0), 2),
    ],
)
def test_measured_order_of_the_variance(make_oracle, sampler: Sampler, order: int):
    """On Gaussian data every draw enters linearly, so mean and variance of the answer are exact, without sampling."""
    schedule = VPSDESchedule(1000)
    denoiser = make_oracle(GAUSSIAN, schedule)
    alpha, sigma = (float(f(torch.tensor(1e-3, dtype=torch.float64))) for f in (schedule.alpha, schedule.sigma))
    data = (alpha * V) ** 2 / (alpha**2 * V + sigma**2)  # of E[x_0 | x_t] at the smallest time, which is returned
    means, variances = [], []
    for intervals in (50, 100, 200):
        mean, variance = chain_moments(sampler, denoiser, evenly_in_log_snr(schedule, intervals + 1, 1e-3))
        means.append(mean - MU)
        variances.append(variance - data)
    assert measured_order(variances) == pytest.approx(order, abs=0.15)
    if isinstance(sampler, EulerMaruyamaSampler):
        assert measured_order(means) == pytest.approx(1, abs=0.15)
    else:
        assert max(map(abs, means)) < 1e-5  # what x_N ~ N(0, I) lacks of q(x_N): alpha_N mu = 2e-3, forgotten since


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_first_order_solvers_are_ddim_and_ddpm(mixture: GaussianMixture, make_oracle, schedule, num_steps: int):
    num_steps = min(num_steps, schedule.num_steps)
    denoiser = make_oracle(mixture, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    draws = white(num_steps, 5, 2)
    ddim = solve(DDIMSampler(num_steps, clip_x0=False), denoiser, times, draws)
    for sampler in (EulerSampler(num_steps), DPMSolverSampler(num_steps, 1), DPMSolverPPSampler(num_steps, 1)):
        # alpha_N = 5e-5 at the cosine's end costs half the digits
        assert_close(solve(sampler, denoiser, times, draws), ddim, rtol=1e-7, atol=1e-7)
    ddpm = solve(DDPMSampler(num_steps, clip_x0=False), denoiser, times, draws)
    assert_close(solve(DPMSolverPPSampler(num_steps, 1, sde=True), denoiser, times, draws), ddpm, rtol=1e-7, atol=1e-7)


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


class Counted(nn.Module):
    """Predicts eps = 0 as an untrained U-Net does, and counts its calls."""

    data_shape, feature_channels = (2,), 2

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return torch.zeros_like(x_t), x_t


@pytest.mark.parametrize("num_steps", [1, 2, 3, 11])
@pytest.mark.parametrize("name", SOLVERS)
def test_network_calls_are_as_told(name: str, num_steps: int):
    schedule, network = CosineSchedule(50), Counted()
    sampler = SOLVERS[name](num_steps)
    times = EvenTrajectory().times(schedule, num_steps)
    x = solve(sampler, Denoiser(network, schedule), times, white(100, 3, 2))
    assert network.calls == sampler.network_calls(times)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("name", SOLVERS)
def test_few_steps_are_finite_on_every_schedule(mixture, make_oracle, schedule, name: str, num_steps: int):
    denoiser = make_oracle(mixture, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    x = solve(SOLVERS[name](num_steps), denoiser, times, white(100, 20, 2).float())
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


class White(nn.Module):
    """The exact network of N(0, V) in many dimensions."""

    def __init__(self, schedule: NoiseSchedule, dim: int) -> None:
        super().__init__()
        self.schedule, self.data_shape, self.feature_channels = schedule, (dim,), dim

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (f(time.double() / 1000)[:, None] for f in (self.schedule.alpha, self.schedule.sigma))
        return sigma * x_t / (alpha**2 * V + sigma**2), x_t


@pytest.mark.parametrize("step", [1, 3])
def test_langevin_steps_have_the_known_stationary_variance(step: int):
    """With g = x / v they tend to ``v (1 + alpha_{s|r}^2 snr^2)``, whatever the start; norms are sharp in 4096 d."""
    schedule = CosineSchedule(10)
    denoiser = Denoiser(White(schedule, 4096), schedule)
    times = schedule.grid()
    sampler = PredictorCorrectorSampler(10, snr=0.4, corrector_steps=40)
    s, below = times[step - 1], times[step - 2] if step > 1 else times.new_zeros(())
    v = schedule.alpha(s) ** 2 * V + schedule.sigma(s) ** 2
    start = (0.6 * v).sqrt() * white(1, 4, 4096)[0]
    x = sampler.correct(denoiser, start, step, times, Scripted(white(40, 4, 4096, seed=1)))
    expected = v * (1 + (schedule.alpha(s) / schedule.alpha(below)) ** 2 * 0.4**2)
    assert x.var().item() == pytest.approx(expected.item(), rel=0.05)  # 16384 numbers: 1.1 % each standard error
    assert x.mean().abs() < 0.05


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
    sampler.check(BetaTilde(denoiser))
    for strategy in (Beta(denoiser), Analytic(denoiser)):
        with pytest.raises(ValueError, match=rf"var = {type(strategy).__name__} .*set var=beta_tilde"):
            sampler.check(strategy)


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
    with pytest.raises(ValueError, match=rf"sampler\.{argument} = {value}"):
        sampler(**{"num_steps": 10, argument: value})


@pytest.mark.parametrize("sampler", [DPMSolverSampler, DPMSolverPPSampler, UniPCSampler])
def test_an_order_above_the_steps_is_refused(sampler: type):
    with pytest.raises(ValueError, match=r"sampler\.order = 3 is above sampler\.num_steps = 2"):
        sampler(2, order=3)
