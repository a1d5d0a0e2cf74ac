"""The closed forms of the oracle against brute-force integration, autograd and torch.distributions."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, Velocity
from optcov.schedule import (
    CosineSchedule,
    FlowSchedule,
    LinearSchedule,
    NoiseSchedule,
    VESchedule,
    VPSDESchedule,
)

MEANS = torch.tensor([[-0.5, 0.2], [0.4, 0.5], [0.3, -0.6]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.04, 0.03], [0.03, 0.05]], [[0.05, -0.02], [-0.02, 0.02]], [[0.03, 0.0], [0.0, 0.08]]], dtype=torch.float64
)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
AMPLITUDES = [(0.999, 0.045), (0.8, 0.6), (0.3, 0.954), (0.01, 1.0)]


def distribution(means: Tensor, covariances: Tensor, weights: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def noisy(count: int, alpha: Tensor, sigma: Tensor, dim: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(3)
    x_0 = MEANS[torch.randint(3, (count,), generator=g), :dim]
    return alpha * x_0 + (0.3 + sigma) * torch.randn(count, dim, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("amplitudes", AMPLITUDES)
@pytest.mark.parametrize("dim", [1, 2])
def test_posterior_is_bayes_rule_on_a_grid(amplitudes: tuple[float, float], dim: int):
    alpha, sigma = torch.tensor(amplitudes, dtype=torch.float64)
    means, covariances = MEANS[:, :dim], COVARIANCES[:, :dim, :dim]
    axis = torch.linspace(-2.2, 2.2, 441 if dim == 2 else 4001, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    x_t = noisy(5, alpha, sigma, dim)
    log_weight = distribution(means, covariances, WEIGHTS).log_prob(points)
    log_weight = log_weight - ((x_t[:, None] - alpha * points) ** 2).sum(-1) / (2 * sigma**2)
    weight = log_weight.softmax(-1)
    mean = weight @ points
    centred = points - mean[:, None]
    covariance = torch.einsum("bp,bpi,bpj->bij", weight, centred, centred)

    result = GaussianMixture(means, covariances, WEIGHTS).posterior(x_t, alpha, sigma)
    # sums over a grid of smooth functions converge beyond all orders; what stays is the domain's cut at 2.2
    assert_close(result[0], mean, rtol=1e-6, atol=1e-8)
    assert_close(result[1], covariance, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("amplitudes", AMPLITUDES)
def test_density_and_score(mixture: GaussianMixture, amplitudes: tuple[float, float]):
    alpha, sigma = torch.tensor(amplitudes, dtype=torch.float64)
    x_t = noisy(50, alpha, sigma).requires_grad_()
    marginal = distribution(
        alpha * MEANS, alpha**2 * COVARIANCES + sigma**2 * torch.eye(2, dtype=torch.float64), WEIGHTS
    )
    log_density = mixture.log_density(x_t, alpha, sigma)
    assert_close(log_density, marginal.log_prob(x_t), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(log_density.sum(), x_t)
    score = mixture.score(x_t.detach(), alpha, sigma)
    assert_close(score, gradient, rtol=1e-8, atol=1e-8)


def test_amplitudes_of_each_sample(mixture: GaussianMixture):
    alpha, sigma = torch.tensor(AMPLITUDES, dtype=torch.float64).T
    x_t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, covariance = mixture.posterior(x_t, alpha, sigma)
    for i in range(4):
        one = (x_t[i : i + 1], alpha[i], sigma[i])
        assert_close((mean[i : i + 1], covariance[i : i + 1]), mixture.posterior(*one), rtol=1e-12, atol=1e-13)
        assert_close(mixture.log_density(x_t, alpha, sigma)[i : i + 1], mixture.log_density(*one))
        assert_close(mixture.score(x_t, alpha, sigma)[i : i + 1], mixture.score(*one))


def test_moments_and_samples(mixture: GaussianMixture):
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    second = (WEIGHTS[:, None, None] * (COVARIANCES + MEANS[:, :, None] * MEANS[:, None, :])).sum(0)
    assert_close(mixture.mean(), mean, rtol=1e-12, atol=1e-14)
    assert_close(mixture.covariance(), second - mean[:, None] * mean, rtol=1e-12, atol=1e-14)

    x = mixture.sample(40_000, torch.Generator().manual_seed(5))
    assert x.shape == (40_000, 2)
    assert x.dtype == torch.float64
    products = torch.cat([x, x[:, :1] ** 2, x[:, 1:] ** 2, x[:, :1] * x[:, 1:]], 1)
    exact = torch.cat([mean, second[0, :1], second[1, 1:], second[0, 1:]])
    z = (products.mean(0) - exact) / (products.std(0) / 200)
    assert z.abs().max() < 4  # standard errors; five of them at a fixed seed
    below = (WEIGHTS * torch.special.ndtr((-0.2 - MEANS[:, 1]) / COVARIANCES[:, 1, 1].sqrt())).sum()
    assert abs((x[:, 1] < -0.2).double().mean() - below) < 4 * 0.5 / 200  # the shape, beyond two moments


def test_samples_follow_the_generator(mixture: GaussianMixture):
    first, again, other = (mixture.sample(7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_isotropic_components_and_default_weights():
    isotropic = GaussianMixture([[0.0, 1.0], [0.5, -1.0]], [0.1, 0.3])
    full = GaussianMixture([[0.0, 1.0], [0.5, -1.0]], [[[0.1, 0], [0, 0.1]], [[0.3, 0], [0, 0.3]]], [4.0, 4.0])
    x_t, alpha, sigma = torch.tensor([[0.2, 0.4]]).double(), torch.tensor(0.6).double(), torch.tensor(0.8).double()
    assert_close(isotropic.posterior(x_t, alpha, sigma), full.posterior(x_t, alpha, sigma))
    assert_close(isotropic.covariance(), full.covariance())


@pytest.mark.parametrize("t", [0.005, 0.3, 1.0])
def test_denoiser_obeys_tweedie_and_its_jacobian_is_the_covariance(mixture: GaussianMixture, make_oracle, t: float):
    """``e = -sigma_t score`` and ``Cov[x_0|x_t] = r (I - sigma_t de/dx_t)``."""
    schedule = LinearSchedule(1000)
    denoiser = make_oracle(mixture, schedule)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x_t = noisy(6, alpha, sigma)
    level = denoiser.levels(time)
    prediction = denoiser(x_t, level)
    mean, covariance = mixture.posterior(x_t, alpha, sigma)
    assert_close(prediction.x0, mean, rtol=1e-7, atol=1e-9)
    assert_close(prediction.eps, -sigma * mixture.score(x_t, alpha, sigma), rtol=1e-7, atol=1e-9)

    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: denoiser(x[None], level).eps[0], x) for x in x_t]
    )
    r = (sigma / alpha) ** 2
    expected = r * (torch.eye(2, dtype=torch.float64) - sigma * jacobian)
    assert_close(covariance, expected, rtol=1e-5, atol=1e-10 * max(1.0, r.item()))  # r multiplies the rounding of 1 - J


@pytest.mark.parametrize("offset", [0, -1])
def test_network_reads_its_time(mixture: GaussianMixture, schedule: NoiseSchedule, offset: int):
    denoiser = Denoiser(OracleNetwork((2,), mixture, schedule, offset), schedule, time_offset=offset)
    t = schedule.grid()[[0, schedule.num_steps // 2, -1]]
    x_t = torch.tensor([[0.3, -0.4]]).double().expand(3, 2)
    sigma = schedule.sigma(t)
    expected = -sigma[:, None] * mixture.score(x_t, schedule.alpha(t), sigma)
    assert_close(denoiser(x_t, denoiser.levels(t)).eps, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("means", "covariances", "weights"),
    [
        ([[0.0, 0.0]], [0.1, 0.2], None),
        ([[0.0, 0.0]], [[[0.1]]], None),
        ([0.0, 0.0], [0.1, 0.2], None),
        ([[0.0], [1.0]], [0.1, 0.2], [1.0]),
        ([[0.0], [1.0]], [0.1, 0.2], [1.0, 0.0]),
        ([[0.0], [1.0]], [0.1, 0.2], [1.0, -1.0]),
        ([[0.0], [1.0]], [0.1, -0.2], None),
        ([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], None),
    ],
)
def test_mixture_refuses_what_is_no_mixture(means, covariances, weights):
    with pytest.raises(ValueError, match=r"mean|covariance|weight"):
        GaussianMixture(means, covariances, weights)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1, 2)])
def test_network_refuses_other_shapes(mixture: GaussianMixture, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="2"):
        OracleNetwork(shape, mixture, CosineSchedule(10))


@pytest.mark.parametrize(
    "path", [CosineSchedule(1000), FlowSchedule(7), VESchedule(1000), VPSDESchedule(37)], ids=lambda p: type(p).__name__
)
def test_single_precision_loses_nothing_but_its_own_rounding(mixture: GaussianMixture, path: NoiseSchedule):
    """Not to the time either, which the network is fed in the precision of x_t, on the grid or between its nodes."""
    total = path.num_steps
    n = torch.tensor([1, 1.63, total / 2, total - 0.37, total], dtype=torch.float64)
    level = path.levels(n / total)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    x_t = (alpha * mixture.sample(5, torch.Generator().manual_seed(0)) + sigma * 0.7).float()
    m, _ = mixture.posterior(x_t.double(), level.alpha, level.sigma)
    e = (x_t.double() - alpha * m) / sigma
    for parameterization in (Velocity(), EDM()):
        network = OracleNetwork((2,), mixture, path, parameterization=parameterization, num_features=3)
        prediction = Denoiser(network, path, parameterization)(x_t, level)
        assert prediction.features.shape == (5, network.feature_channels) == (5, 3)
        assert prediction.features.dtype == prediction.x0.dtype == prediction.eps.dtype == torch.float32
        assert_close(prediction.x0.double(), m, rtol=0, atol=5e-7)
        assert_close(prediction.eps.double(), e, rtol=0, atol=1e-6)
