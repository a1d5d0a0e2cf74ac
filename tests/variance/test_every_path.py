"""Every strategy recovers the right C from an exact network, whatever the network predicts and on every kind of path.

The truth is the closed form of a correlated mixture.  A strategy that learns is fitted at one x_t at a time, where
x_0 given x_t can be drawn exactly and the least of its own loss is known or found: what it then says must be
``Cov[x_0|x_t]``, within five standard errors of the draws.
"""

import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import x0_covariance
from optcov.kernel import ReverseKernel
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, V, Velocity
from optcov.schedule import FlowSchedule, NoiseLevels, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.variance.analytic import Analytic
from optcov.variance.base import Trained, TrainedHead
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

N = 5
VP, FLOW, VE = VPSDESchedule(N), FlowSchedule(N), VESchedule(N, sigma_min=0.1, sigma_max=5.0)
# Eps says nothing of x_0 where a flow ends, and V is defined on variance-preserving paths
CASES = [
    *[(VP, kind) for kind in (Eps, X0, V, Velocity, EDM)],
    *[(FLOW, kind) for kind in (X0, Velocity, EDM)],
    *[(VE, kind) for kind in (Eps, X0, Velocity, EDM)],
]
cases = pytest.mark.parametrize(
    ("schedule", "parameterization"), CASES, ids=[f"{type(path).__name__}-{kind.__name__}" for path, kind in CASES]
)
BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)


class Shifted(nn.Module):
    """A network that is off by a constant in what it predicts."""

    def __init__(self, network: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels, self.bias = network, (2,), 1, bias

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, features = self.network(x_t, time)
        return output + self.bias, features[:, :1]


def exact_denoiser(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization], bias: float = 0.0
) -> Denoiser:
    network = OracleNetwork((2,), mixture, schedule, parameterization=parameterization(), num_features=1)
    return Denoiser(Shifted(network, bias * BIAS), schedule, parameterization()).eval()


def level_at(schedule: NoiseSchedule, n: int) -> NoiseLevels:
    return schedule.levels(torch.tensor(n / N, dtype=torch.float64))


def exact(mixture: GaussianMixture, x_t: Tensor, level: NoiseLevels) -> Tensor:
    """The diagonal of ``Cov[x_0|x_t]``."""
    return mixture.posterior(x_t, level.alpha, level.sigma)[1].diagonal(dim1=1, dim2=2)


@cases
def test_fixed_variances_are_the_same_whatever_the_network_predicts(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization]
):
    denoiser = exact_denoiser(mixture, schedule, parameterization)
    for n in range(1, N + 1):
        level = level_at(schedule, n)
        prediction = denoiser(torch.ones(2, 2, dtype=torch.float64), level)
        assert not BetaTilde(denoiser).covariance(denoiser, prediction).diagonal().any()
        found = Beta(denoiser).covariance(denoiser, prediction).diagonal()
        assert_close(found, (level.sigma**2).expand(2, 2), rtol=1e-12, atol=0)
        if schedule is VP:  # where it is the C of unit-Gaussian data
            unit = exact(GaussianMixture([[0.0, 0.0]], [1.0]), prediction.x_t, level)
            assert_close(found, unit, rtol=1e-10, atol=0)


@functools.cache
def mean_variance(mixture: GaussianMixture, schedule: NoiseSchedule) -> Tensor:
    """``E[C]`` of each pixel, n = 1..N, by quadrature over the plane of x_t, ``[N, 2]``."""
    table = []
    for n in range(1, N + 1):
        level = level_at(schedule, n)
        reach = 5 * float((level.alpha**2 * 0.3 + level.sigma**2).sqrt()) + 0.5
        axis = torch.linspace(-reach, reach, 161, dtype=torch.float64)
        x_t = torch.cartesian_prod(axis, axis)
        weight = mixture.log_density(x_t, level.alpha, level.sigma).exp()
        assert float(weight.sum()) * (2 * reach / 160) ** 2 == pytest.approx(1, rel=1e-4)
        table.append(weight / weight.sum() @ exact(mixture, x_t, level))
    return torch.stack(table)


@pytest.mark.parametrize("imperfect", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
@cases
def test_analytic_variances_are_the_mean_of_c(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    parameterization: type[Parameterization],
    per_pixel: bool,
    imperfect: bool,
):
    """Of an exact network; the imperfect form is also that of a biased one, whose C grows by ``(c_out bias)^2``."""
    bias = 1.0 if imperfect else 0.0
    denoiser = exact_denoiser(mixture, schedule, parameterization, bias)
    strategy = Analytic(denoiser, per_pixel, imperfect, batch_size=10_000)
    strategy.calibrate(denoiser, [mixture.sample(2000, torch.Generator().manual_seed(0))], seed=1)
    level = schedule.levels(schedule.grid())
    c_out_sq = denoiser.parameterization.c_out_sq(level)[:, None]
    expected = mean_variance(mixture, schedule) + c_out_sq * (bias * BIAS) ** 2
    error = strategy.eps_variance_se[1:].reshape(N, -1) * c_out_sq
    if not per_pixel:
        expected = expected.mean(1, keepdim=True)
    prediction = denoiser(torch.zeros(N, 2, dtype=torch.float64), level)
    found = strategy.covariance(denoiser, prediction).diagonal()
    assert ((found - expected).abs() < 4.5 * error).all(), ((found - expected) / error).tolist()
    if imperfect:  # a perfect mean's f^2 - f_net^2 is a difference of large numbers at little noise
        assert (error < 0.06 * expected).all(), "the comparison means little"


@cases
def test_an_analytic_variance_vanishes_with_the_noise(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization]
):
    """Between 0 and the first time, which trajectories in log SNR visit: C approaches sigma^2 / alpha^2."""
    denoiser = exact_denoiser(mixture, schedule, parameterization)
    strategy = Analytic(denoiser, imperfect_mean=True)
    strategy.calibrate(denoiser, [mixture.sample(400, torch.Generator().manual_seed(0))])
    level = schedule.levels(torch.tensor([1e-4], dtype=torch.float64))
    found = strategy.covariance(denoiser, denoiser(torch.zeros(1, 2, dtype=torch.float64), level)).diagonal()
    assert_close(found, level.noise_variance[:, None].expand(1, 2), rtol=0.05, atol=2e-4)


def posterior_draws(mixture: GaussianMixture, x_t: Tensor, level: NoiseLevels, count: int) -> Tensor:
    """Exact draws ``[count, 2]`` of x_0 given one x_t ``[2]``: a component by its responsibility, then its Gaussian."""
    g = torch.Generator().manual_seed(5)
    components = range(len(mixture.weights))
    joint = [
        mixture.weights[k].log()
        + GaussianMixture(mixture.means[k][None], mixture.covariances[k][None]).log_density(
            x_t[None], level.alpha, level.sigma
        )
        for k in components
    ]
    chosen = torch.multinomial(torch.cat(joint).softmax(0), count, replacement=True, generator=g)
    laws = [mixture.posterior(x_t[None], level.alpha, level.sigma, torch.tensor([k])) for k in components]
    means = torch.cat([mean for mean, _ in laws])
    roots = torch.linalg.cholesky(torch.cat([covariance for _, covariance in laws]))
    z = torch.randn(count, 2, dtype=torch.float64, generator=g)
    return means[chosen] + torch.einsum("bij,bj->bi", roots[chosen], z)


class Constant(nn.Module):
    """One output for all samples: all there is to say at one x_t."""

    def __init__(self, *shapes: object) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        return self.value.expand(len(features), 2)


def at_one_point(
    mixture: GaussianMixture, denoiser: Denoiser, n: int, count: int
) -> tuple[Prediction, Tensor, Prediction, Tensor]:
    """Many answers at one x_t with their targets, one answer there, and the exact diagonal of C."""
    x_t, level = torch.tensor([0.25, 0.1], dtype=torch.float64), level_at(denoiser.schedule, n)
    x_0 = posterior_draws(mixture, x_t, level, count)
    eps = (x_t - level.alpha * x_0) / level.sigma
    each = denoiser.schedule.levels(level.t.expand(count))
    many, one = denoiser(x_t.expand(count, 2), each), denoiser(x_t[None], level)
    return many, denoiser.target(x_0, eps, each), one, exact(mixture, x_t[None], level)


def minimise(strategy: Trained, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> None:
    """Fit a head of one constant to the least of the strategy's own loss, which is convex and a sum over pixels."""
    (value,) = strategy.parameters()
    for _ in range(30):  # Newton's steps; one suffices where the loss is a square
        loss = strategy.loss(denoiser, prediction, target).mean()
        (slope,) = torch.autograd.grad(loss, value, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), value)
        step = slope.detach() / curvature
        with torch.no_grad():
            value -= step
        if step.abs().max() < 1e-10 * (1 + value.detach().abs().max()):
            return
    pytest.fail("no least value was found")


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("kind", [NPR, SN])
@cases
def test_heads_at_the_least_of_their_loss_say_c(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    parameterization: type[Parameterization],
    kind: type[TrainedHead],
    n: int,
):
    denoiser = exact_denoiser(mixture, schedule, parameterization)
    many, target, one, variance = at_one_point(mixture, denoiser, n, 10_000)
    strategy = kind(denoiser, Constant)
    minimise(strategy, denoiser, many, target)
    found = strategy.covariance(denoiser, one).diagonal()
    regressed = (target - one.output) ** 2 if kind is NPR else target**2
    error = denoiser.parameterization.c_out_sq(one.level) * regressed.std(0) / math.sqrt(len(target))
    assert ((found - variance).abs() < 5 * error).all(), ((found - variance) / error).tolist()
    if kind is NPR:
        assert (error < 0.04 * variance).all(), "the comparison means little"


@pytest.mark.parametrize("n", [2, N])
@cases
def test_the_learned_range_at_the_least_of_its_loss_is_the_step_that_c_makes(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization], n: int
):
    """``beta_tilde + c^2 C``, and the C behind it, though it models the step alone."""
    denoiser = exact_denoiser(mixture, schedule, parameterization)
    many, target, one, variance = at_one_point(mixture, denoiser, n, 10_000)
    strategy = LearnedRange(denoiser, Constant)
    minimise(strategy, denoiser, many, target)
    kernel = ReverseKernel.from_levels(level_at(schedule, n - 1), one.level)
    x_0 = denoiser.parameterization.x0(many.x_t, target, many.level)
    error = ((x_0 - one.x0) ** 2).std(0) / math.sqrt(len(target))
    step = strategy.transition(kernel, denoiser, one).diagonal()
    assert (kernel.c**2 * error < 0.04 * step).all(), "the comparison means little"
    assert ((step - kernel.lambda_sq - kernel.c**2 * variance).abs() < 5 * kernel.c**2 * error).all()
    behind = x0_covariance(kernel, denoiser, strategy, one).diagonal()
    assert ((behind - variance).abs() < 5 * error).all()
