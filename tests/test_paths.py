"""Gaussian data come back from every Gaussian path: exactly with the exact C, at the solver's order from the ODE.

On data N(mu, S) every network here is exact and affine in x_t, so that a chain is affine in its start and draws: its
mean and covariance are read off its answers to unit noise, without a sampling error.  Started from the exact marginal
of x_T, a chain with the exact C keeps the marginal of x_t at every node; the last step returns the posterior mean at
tau_1, whose covariance is ``S - C(tau_1)``.  So is that of the ODE's exact solution.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, IsotropicCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.likelihood import ProbabilityFlow
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.registry import make, options
from optcov.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPPSampler,
    DPMSolverSampler,
    EulerMaruyamaSampler,
    EulerSampler,
    HeunSampler,
    NoiseStream,
    PredictorCorrectorSampler,
    Sampler,
    UniPCSampler,
    invert,
)
from optcov.schedule import (
    CosineSchedule,
    FlowSchedule,
    FunctionSchedule,
    LinearSchedule,
    NoiseLevels,
    NoiseSchedule,
    SqrtLinearSchedule,
    VESchedule,
    VPSchedule,
    VPSDESchedule,
)
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed
from optcov.variance.fixed import BetaTilde
from optcov.variance.profile import variance_profile

PATHS: dict[str, NoiseSchedule] = {
    "linear": LinearSchedule(1000),
    "cosine": CosineSchedule(1000),
    "sqrt_linear": SqrtLinearSchedule(1000),
    "vp_sde": VPSDESchedule(1000),
    "flow": FlowSchedule(1000),
    "ve": VESchedule(1000),
    "function": FunctionSchedule(lambda t: 1 / (1 + t), lambda t: 20 * t),  # a path of no name
}


@dataclass(frozen=True)
class Gaussian:
    """``N(mean, S)``, ``S = axes diag(variances) axes^T``; float64 ``[d]``, ``[d]`` and ``[d, d]``."""

    mean: Tensor
    variances: Tensor
    axes: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.axes * self.variances @ self.axes.T

    def marginal(self, level: NoiseLevels) -> Tensor:
        """Variances of x_t along the axes, ``[..., d]``."""
        return level.alpha[..., None] ** 2 * self.variances + level.sigma[..., None] ** 2

    def answer(self, x_t: Tensor, level: NoiseLevels) -> tuple[Tensor, Tensor]:
        """``E[x_0|x_t]`` and ``E[eps|x_t]``, written so that neither cancels, each ``[B, d]``."""
        alpha, sigma = level.alpha[..., None], level.sigma[..., None]
        score = (x_t - alpha * self.mean) @ self.axes / self.marginal(level)
        return self.mean + alpha * self.variances * score @ self.axes.T, sigma * score @ self.axes.T

    def posterior(self, level: NoiseLevels) -> Tensor:
        """``Cov[x_0|x_t]``, ``[..., d, d]``."""
        left = level.sigma[..., None] ** 2 * self.variances / self.marginal(level)
        return self.axes * left[..., None, :] @ self.axes.T

    def returned(self, level: NoiseLevels) -> Tensor:
        """``S - Cov[x_0|x_t]``, the covariance of the posterior mean where x_t has its marginal."""
        return self.axes * (level.alpha[..., None] * self.variances) ** 2 / self.marginal(level) @ self.axes.T


LINE = Gaussian(*torch.tensor([[0.3], [0.25]], dtype=torch.float64), torch.eye(1, dtype=torch.float64))
# variances 0.25, 0.09, 0.01 along axes that every pixel shares
SPACE = Gaussian(
    *torch.tensor([[0.3, -0.2, 0.1], [0.25, 0.09, 0.01]], dtype=torch.float64),
    torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0],
)

every_path = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)


class GaussianNetwork(nn.Module):
    """The exact network of Gaussian data in any parameterization, in float64."""

    def __init__(self, data: Gaussian, schedule: NoiseSchedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.data, self.schedule, self.parameterization = data, schedule, parameterization
        self.data_shape, self.feature_channels = (len(data.mean),), 1

    def forward(self, x_in: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        level = self.schedule.levels(time.double() / 1000)
        c_in = self.parameterization.c_in(level)
        x_t = x_in if c_in is None else x_in / c_in[:, None]
        return self.parameterization.target(*self.data.answer(x_t, level), level), x_t


def make_denoiser(
    data: Gaussian, schedule: NoiseSchedule, parameterization: Parameterization | None = None
) -> Denoiser:
    parameterization = X0() if parameterization is None else parameterization
    network = GaussianNetwork(data, schedule, parameterization)
    return Denoiser(network, schedule, parameterization, data_range=DataRange(None, None, None)).eval()


class Exact(Closed):
    """The exact ``Cov[x_0|x_t]`` of Gaussian data, as any kind that can hold it."""

    def __init__(self, denoiser: Denoiser, kind: Callable[[Tensor], Covariance] | None = None) -> None:
        super().__init__(denoiser)
        self.kind = kind or full

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        exact = denoiser.network.data.posterior(prediction.level)
        return self.kind(exact.expand(len(prediction.x_t), *exact.shape[-2:]))


def isotropic(matrix: Tensor) -> Covariance:
    return IsotropicCovariance(matrix[:, 0, 0], matrix.shape[1:2])


def diagonal(matrix: Tensor) -> Covariance:
    return DiagonalCovariance(matrix.diagonal(dim1=1, dim2=2))


def full(matrix: Tensor) -> Covariance:
    return FullCovariance(matrix, matrix.shape[1:2])


class Scripted(NoiseStream):
    """Known draws, one after another, in place of random ones."""

    def __init__(self, draws: Iterator[Tensor]) -> None:
        self.script = draws

    def draw(self) -> Tensor:
        return next(self.script)


def start_of(data: Gaussian, level: NoiseLevels, z: Tensor) -> Tensor:
    """x_T with its exact marginal, from white noise ``[B, d]``."""
    return level.alpha * data.mean + data.marginal(level).sqrt() * z @ data.axes.T


def answer_moments(sampler: Sampler, strategy: Closed, denoiser: Denoiser, times: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of what a chain returns that starts from the exact marginal of x_T."""
    data = denoiser.network.data
    d, draws = len(data.mean), 2 * len(times) + 3
    unit = torch.eye(draws * d, dtype=torch.float64).reshape(draws * d, draws, d)
    probes = torch.cat([torch.zeros_like(unit[:1]), unit])
    noise = Scripted(iter(probes[:, 1:].unbind(1)))
    start = start_of(data, denoiser.levels(times[-1]), probes[:, 0])
    answer = sampler.sample(denoiser, strategy, times, noise, start=start)
    gains = answer[1:] - answer[0]
    assert bool((gains[-2 * d :] == 0).all()), "the script is too short"
    return answer[0], gains.T @ gains


PARAMETERIZATIONS = [
    *[(name, X0()) for name in PATHS],
    *[(name, Eps()) for name in PATHS if name != "flow"],  # alpha is 0 at the end of a flow
    *[(name, V()) for name in ("linear", "cosine", "vp_sde")],
    ("flow", Velocity()),
    ("function", Velocity()),
    ("ve", EDM()),
    ("ve", Score()),
]
SAMPLERS_WITH_C = {
    "ddpm": lambda k: DDPMSampler(k, clip_x0=False, cut=None),
    "ddim_0": lambda k: DDIMSampler(k, eta=0.0, clip_x0=False, cut=None),
    "ddim_half": lambda k: DDIMSampler(k, eta=0.5, clip_x0=False, cut=None),
    "ddim_1": lambda k: DDIMSampler(k, eta=1.0, clip_x0=False, cut=None),
}


@pytest.mark.parametrize(
    ("name", "parameterization"), PARAMETERIZATIONS, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
@pytest.mark.parametrize("sampler", SAMPLERS_WITH_C.values(), ids=SAMPLERS_WITH_C)
@pytest.mark.parametrize("num_steps", [2, 9])
def test_mean_and_variance_come_back_exactly_in_any_number_of_steps(
    name: str, parameterization: Parameterization, sampler: Callable[[int], Sampler], num_steps: int
):
    schedule = PATHS[name]
    denoiser = make_denoiser(LINE, schedule, parameterization)
    times = EvenTrajectory().times(schedule, num_steps)
    # Eps divides by alpha_N = 5e-5 at the cosine's end, twice on its way to a variance
    tolerance = 1e-6 if isinstance(parameterization, Eps) else 1e-10
    first = schedule.levels(times[0])
    for kind in (isotropic, diagonal, full) if num_steps == 2 else (full,):
        mean, variance = answer_moments(sampler(num_steps), Exact(denoiser, kind), denoiser, times)
        assert_close(mean, LINE.mean, rtol=tolerance, atol=0)
        # at the end of a flow nothing is left of x_T but rounding, squared
        assert_close(variance, LINE.returned(first), rtol=tolerance, atol=1e-30)
        assert_close(variance + LINE.posterior(first), LINE.covariance, rtol=tolerance, atol=0)


@every_path
@pytest.mark.parametrize("sampler", SAMPLERS_WITH_C.values(), ids=SAMPLERS_WITH_C)
@pytest.mark.parametrize("num_steps", [2, 7])
def test_correlations_come_back_exactly_with_the_full_matrix(
    schedule: NoiseSchedule, sampler: Callable[[int], Sampler], num_steps: int
):
    denoiser = make_denoiser(SPACE, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    mean, covariance = answer_moments(sampler(num_steps), Exact(denoiser), denoiser, times)
    assert_close(mean, SPACE.mean, rtol=1e-9, atol=0)
    assert_close(covariance, SPACE.returned(schedule.levels(times[0])), rtol=1e-9, atol=1e-12)
    left = SPACE.posterior(schedule.levels(times[0]))
    assert_close(covariance + left, SPACE.covariance, rtol=1e-9, atol=1e-12)


@every_path
def test_the_exact_covariance_is_needed(schedule: NoiseSchedule):
    """With C = 0, or the diagonal of C, two steps do not give the data back: the tests above can fail."""
    denoiser = make_denoiser(SPACE, schedule)
    times = EvenTrajectory().times(schedule, 2)
    wanted = SPACE.returned(schedule.levels(times[0]))
    sampler = SAMPLERS_WITH_C["ddpm"](2)
    for strategy in (BetaTilde(denoiser), Exact(denoiser, diagonal)):
        _, covariance = answer_moments(sampler, strategy, denoiser, times)
        assert float((covariance - wanted).abs().max()) > 0.01


@every_path
def test_nodes_between_those_of_the_grid_serve_as_well(schedule: NoiseSchedule):
    denoiser = make_denoiser(SPACE, schedule)
    times = torch.tensor([0.00123, 0.0314, 0.271828, 0.9], dtype=torch.float64)
    for sampler in SAMPLERS_WITH_C.values():
        mean, covariance = answer_moments(sampler(4), Exact(denoiser), denoiser, times)
        assert_close(mean, SPACE.mean, rtol=1e-9, atol=0)
        assert_close(covariance, SPACE.returned(schedule.levels(times[0])), rtol=1e-9, atol=1e-12)


# solvers of the ODE and the SDE


def even_in_log_snr(schedule: NoiseSchedule, count: int) -> Tensor:
    """Times on any path whose log-SNR runs from 6, where data of variance 0.25 are known, to -6, where they are not."""
    return schedule.time(torch.linspace(6, -6, count, dtype=torch.float64))


def to_the_end(schedule: NoiseSchedule, count: int) -> Tensor:
    """Times from where data are known to t = 1, where on a flow no signal is left."""
    last = float(schedule.log_snr(torch.ones(1, dtype=torch.float64)).clamp(min=-10))
    times = schedule.time(torch.linspace(6, last, count, dtype=torch.float64))
    times[-1] = 1.0
    return times


def error_of(sampler: Sampler, schedule: NoiseSchedule, intervals: int) -> float:
    """Signed, of the variance that comes back; the mean is checked on the way."""
    denoiser = make_denoiser(LINE, schedule)
    sampler.check(BetaTilde(denoiser), schedule)
    # DPM-Solver-3 takes 2 mod 3 calls before the last, so that its only lower step is one of order 2: of local error 3
    third = isinstance(sampler, DPMSolverSampler) and sampler.order == 3
    times = even_in_log_snr(schedule, intervals + (3 if third else 1))
    mean, variance = answer_moments(sampler, BetaTilde(denoiser), denoiser, times)
    # the mean's path has x_0 = mu and eps = 0 throughout, which all of these solve exactly
    assert_close(mean, LINE.mean, rtol=1e-9, atol=0)
    return float(variance - LINE.returned(schedule.levels(times[0])))


SOLVERS = [
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
    (UniPCSampler(999, 3), 3),  # but not here: the first step has order 1, corrected 2, and so a local error of order 3
    (DPMSolverPPSampler(999, 1, sde=True), 1),
    (DPMSolverPPSampler(999, 2, sde=True), 2),
    (EulerSampler(999, churn=2.0), 1),
    (HeunSampler(999, churn=2.0), 2),
]


def solver_id(value: object) -> str | None:
    if not isinstance(value, Sampler):
        return None
    marks = [
        getattr(value, "order", ""),
        "sde" * getattr(value, "stochastic", False),
        "churn" * bool(getattr(value, "churn", 0)),
    ]
    return "-".join([type(value).__name__, *[str(mark) for mark in marks if mark]])


@pytest.mark.parametrize(("sampler", "order"), SOLVERS, ids=solver_id)
def test_solvers_converge_to_the_data_at_their_order(sampler: Sampler, order: int):
    """0.3 is what the next term of the error leaves of a slope between 32 and 64 steps; a lost order is 1."""
    coarse, fine = (error_of(sampler, PATHS["flow"], intervals) for intervals in (32, 64))
    assert abs(fine) > 1e-7, "rounding has no slope"
    assert math.log2(abs(coarse / fine)) > order - 0.3


@pytest.mark.parametrize("sampler", [sampler for sampler, _ in SOLVERS], ids=solver_id)
def test_at_equal_log_snr_all_paths_are_one(sampler: Sampler):
    """Paths differ by the scale of x_t alone, which these solvers do not see: so the order above is that of all."""
    errors = {name: error_of(sampler, schedule, 9) for name, schedule in PATHS.items()}
    assert abs(errors["flow"]) > 1e-4, "no error to compare"
    for name, error in errors.items():
        assert error == pytest.approx(errors["flow"], rel=1e-7), name  # of a variance of 0.25, known to 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_of_unipc_corrects(order: int):
    found, without = (abs(error_of(kind(999, order), PATHS["flow"], 32)) for kind in (UniPCSampler, DPMSolverPPSampler))
    assert found < without / 3


@pytest.mark.parametrize("name", [name for name, schedule in PATHS.items() if isinstance(schedule, VPSchedule)])
def test_euler_maruyama_converges_at_order_one_where_it_applies(name: str):
    schedule = PATHS[name]
    denoiser, sampler = make_denoiser(LINE, schedule), EulerMaruyamaSampler(999)
    sampler.check(BetaTilde(denoiser), schedule)
    errors = []
    for intervals in (64, 128):
        times = even_in_log_snr(schedule, intervals + 1)
        mean, variance = answer_moments(sampler, BetaTilde(denoiser), denoiser, times)
        errors.append([float(mean - LINE.mean), float(variance - LINE.returned(schedule.levels(times[0])))])
    for coarse, fine in zip(*errors, strict=True):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["flow", "ve", "function"])
def test_a_sampler_of_variance_preserving_paths_refuses_others_in_one_sentence(name: str):
    denoiser = make_denoiser(LINE, PATHS[name])
    with pytest.raises(ValueError, match=r"variance-preserving") as refusal:
        EulerMaruyamaSampler(10).check(BetaTilde(denoiser), PATHS[name])
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert " must be " in sentence
    assert "(got " in sentence


class White(NoiseStream):
    """Fresh draws for all samples at once."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64, generator=self.generator)


@pytest.mark.parametrize("path", [name for name in PATHS if name not in ("sqrt_linear", "vp_sde")])
@pytest.mark.parametrize("name", options("sampler"))
def test_a_sampler_gives_the_data_back_or_refuses_the_path(path: str, name: str):
    """From the very end of a path, to 0.03, or 0.05 for Euler-Maruyama: more than 40 steps leave.

    What a sampler made for another path answers is wrong by more: Euler-Maruyama gave 0.129 for 0.25 on a flow.
    """
    schedule, sampler = PATHS[path], make("sampler", name, num_steps=40)
    tolerance = 0.05 if isinstance(sampler, EulerMaruyamaSampler) else 0.03
    # the steps of Langevin dynamics are sized by norms, which say little in one dimension, and are not linear
    langevin = isinstance(sampler, PredictorCorrectorSampler)
    dim = 64 if langevin else 1
    data = Gaussian(LINE.mean.expand(dim), LINE.variances.expand(dim), torch.eye(dim, dtype=torch.float64))
    denoiser = make_denoiser(data, schedule)
    strategy = Exact(denoiser, isotropic) if sampler.uses_variance else BetaTilde(denoiser)
    try:
        sampler.check(strategy, schedule)
    except ValueError:
        assert not isinstance(schedule, VPSchedule)
        return
    times = to_the_end(schedule, 40)
    returned = float(LINE.returned(schedule.levels(times[0])))
    if not langevin:
        mean, covariance = answer_moments(sampler, strategy, denoiser, times)
        assert float(mean) == pytest.approx(0.3, abs=0.03)
        assert float(covariance) == pytest.approx(returned, abs=tolerance)
        return
    noise = White(400, dim)  # 25,600 numbers: standard errors of 0.003
    start = start_of(data, schedule.levels(times[-1]), noise.draw())
    x_0 = sampler.sample(denoiser, strategy, times, noise, start=start)
    assert float(x_0.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x_0.var()) == pytest.approx(returned, abs=tolerance)


@every_path
@pytest.mark.parametrize("sampler", [EulerSampler(999, churn=2.0), HeunSampler(999, churn=2.0)], ids=solver_id)
def test_churn_at_the_end_of_a_path_is_finite(schedule: NoiseSchedule, sampler: Sampler):
    """On a flow no noise can be added where no signal is left."""
    denoiser, times = make_denoiser(LINE, schedule), to_the_end(schedule, 40)
    mean, variance = answer_moments(sampler, BetaTilde(denoiser), denoiser, times)
    assert_close(mean, LINE.mean, rtol=1e-9, atol=0)
    assert float(variance) == pytest.approx(0.25, abs=0.05)


@every_path
def test_inversion_finds_the_noise_that_makes_the_data(schedule: NoiseSchedule):
    """Also where no signal is left, and ``x_s = keep x_t + change e`` has an infinite ``keep``."""
    denoiser = make_denoiser(LINE, schedule)
    last = float(schedule.log_snr(torch.ones(1, dtype=torch.float64)).clamp(min=-4))
    times = schedule.time(torch.linspace(6, last, 8, dtype=torch.float64))
    if isinstance(schedule, FlowSchedule):
        times[-1] = 1.0
    x_0 = torch.linspace(-1, 1.5, 6, dtype=torch.float64)[:, None]
    x_t = invert(denoiser, x_0, times, corrections=50)
    sampler, noise = DDIMSampler(8, clip_x0=False), White(6, 1)
    zero = BetaTilde(denoiser)
    assert_close(sampler.sample(denoiser, zero, times, noise, start=x_t), x_0, rtol=1e-8, atol=1e-8)
    encoded = invert(denoiser, x_0, times)
    assert 0.01 < float((sampler.sample(denoiser, zero, times, noise, start=encoded) - x_0).abs().max()) < 0.5


@every_path
def test_the_profile_of_data_of_unknown_support(schedule: NoiseSchedule):
    """Averages of C then have no bound but r."""
    denoiser = make_denoiser(SPACE, schedule)
    images = start_of(SPACE, schedule.levels(torch.zeros((), dtype=torch.float64)), White(50, 3).draw())
    found = variance_profile(denoiser, Exact(denoiser), images, stride=0.1, num_times=6)
    levels = schedule.levels(found["t"])
    exact = SPACE.posterior(levels).diagonal(dim1=1, dim2=2)
    assert_close(found["mean"], exact.mean(1), rtol=1e-10, atol=0)
    assert_close(found["upper"], (levels.sigma / levels.alpha) ** 2, rtol=1e-10, atol=0)
    assert bool((found["mean"] <= found["upper"]).all())


@pytest.mark.parametrize("path", ["linear", "flow", "ve", "function"])  # more in tests/likelihood
def test_the_likelihood_of_the_ode_is_the_exact_density(path: str):
    """Up to the prior: it is N(0, std^2 I) where x_T is N(alpha_T mu, v_T), which the second comparison allows for."""
    schedule, denoiser = PATHS[path], make_denoiser(LINE, PATHS[path])
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    t_min = 1e-3
    found = ProbabilityFlow(denoiser, t_min=t_min, tolerance=1e-7).solve(x, torch.ones_like(x)).log_density
    first, last = schedule.levels(torch.tensor([t_min, 1.0], dtype=torch.float64))
    v_first, v_last = (level.alpha**2 * 0.25 + level.sigma**2 for level in (first, last))
    normal = torch.distributions.Normal
    exact = normal(first.alpha * 0.3, v_first.sqrt()).log_prob(x[:, 0])
    end = last.alpha * 0.3 + (v_last / v_first).sqrt() * (x[:, 0] - first.alpha * 0.3)
    under_the_prior = (
        normal(torch.zeros_like(end), schedule.prior_std(last)).log_prob(end) + (v_last / v_first).log() / 2
    )
    assert_close(found, under_the_prior, rtol=0, atol=5e-5)  # a tolerance of 1e-7 a step, over many steps
    misfit = float((under_the_prior - exact).abs().max())
    assert misfit < 0.05
    assert_close(found, exact, rtol=0, atol=misfit + 5e-5)
