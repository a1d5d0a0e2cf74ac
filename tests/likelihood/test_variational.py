"""The variational bound against its exact value, which is written here anew.

On a mixture in one dimension the value comes from quadrature in NumPy; on correlated Gaussian data, on every path, from
closed forms: with the exact covariance a reverse step is ``q(x_s | x_t)`` itself, and its term is information.
"""

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from optcov.covariance import Covariance, FullCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood import DensityBound, VariationalBound
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0
from optcov.sampler.noise import NoiseStream
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.trajectory import DDIMStrideTrajectory, EvenTrajectory, QuadraticTrajectory, Trajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange

Array = NDArray[np.float64]
MEANS, VARIANCES, WEIGHTS = np.array([-0.6, 0.1, 0.5]), np.array([0.01, 0.04, 0.0025]), np.array([0.5, 0.2, 0.3])
LINE = GaussianMixture(MEANS[:, None].tolist(), VARIANCES.tolist(), WEIGHTS.tolist())


class Exact(Closed):
    """The oracle's full ``Cov[x_0 | x_t]``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t, level = prediction.x_t, prediction.level
        return FullCovariance(denoiser.network.mixture.posterior(x_t, level.alpha, level.sigma)[1], x_t.shape[1:])


class Constant(nn.Module):
    """A head that answers one number."""

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        return torch.full((len(features), 1), 0.3, dtype=torch.float64)


def make_analytic(denoiser: Denoiser) -> VarianceStrategy:
    """With the table of Gaussian data of variance 0.05: neither here nor in the exact value does it matter which."""
    strategy, times = Analytic(denoiser), denoiser.schedule.grid()
    alpha_sq, sigma_sq = denoiser.schedule.alpha(times) ** 2, denoiser.schedule.sigma(times) ** 2
    strategy.eps_variance[1:] = 0.05 * alpha_sq / (0.05 * alpha_sq + sigma_sq)
    return strategy


STRATEGIES: dict[str, Callable[[Denoiser], VarianceStrategy]] = {
    "beta_tilde": BetaTilde,
    "beta": Beta,
    "analytic": make_analytic,
    "iddpm": lambda denoiser: LearnedRange(denoiser, lambda channels, shape: Constant()),
    "exact": Exact,
}


def model_variance(name: str, strategy: VarianceStrategy, s: int, t: int, bar: Array, posterior: Array) -> Array:
    """Sigma at each x_t, from the papers' formulas in alpha_bar."""
    ratio = bar[t] / bar[s]
    beta, beta_tilde = 1 - ratio, (1 - bar[s]) / (1 - bar[t]) * (1 - ratio)
    c_squared = bar[s] * (beta / (1 - bar[t])) ** 2
    return {
        "beta_tilde": lambda: np.full_like(posterior, beta_tilde),
        "beta": lambda: np.full_like(posterior, beta),
        "iddpm": lambda: np.full_like(posterior, beta**0.65 * beta_tilde**0.35),
        "exact": lambda: beta_tilde + c_squared * posterior,
        "analytic": lambda: np.full_like(
            posterior, beta_tilde + c_squared * (1 - bar[t]) / bar[t] * float(strategy.eps_variance[t])
        ),
    }[name]()


def exact_terms(name: str, strategy: VarianceStrategy, nodes: list[int], betas: Array) -> list[float]:
    """Expected decoder, transitions and prior on LINE, in nats."""
    bar = np.concatenate([[1.0], np.cumprod(1 - betas)])

    def conditional(x: Array, t: int) -> tuple[Array, Array, Array]:
        """Density of x_t, mean and variance of x_0 given it."""
        total = bar[t] * VARIANCES + 1 - bar[t]
        centred = x[..., None] - np.sqrt(bar[t]) * MEANS
        log_joint = np.log(WEIGHTS) - centred**2 / (2 * total) - np.log(2 * np.pi * total) / 2
        density = logsumexp(log_joint, -1)
        p = np.exp(log_joint - density[..., None])
        means = MEANS + np.sqrt(bar[t]) * VARIANCES / total * centred
        mean = (p * means).sum(-1)
        variance = (p * (means**2 + (1 - bar[t]) * VARIANCES / total)).sum(-1) - mean**2
        return np.exp(density), mean, variance

    x = np.linspace(-6, 6, 6001)
    terms = []
    for s, t in itertools.pairwise(nodes):
        density, _, posterior = conditional(x, t)
        beta_tilde = (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
        c_squared = bar[s] * ((1 - bar[t] / bar[s]) / (1 - bar[t])) ** 2
        sigma = model_variance(name, strategy, s, t, bar, posterior)
        kl = ((beta_tilde + c_squared * posterior) / sigma - 1 + np.log(sigma / beta_tilde)) / 2
        terms.append(float((kl * density).sum() / density.sum()))
    last = bar[nodes[-1]]
    second_moment = (WEIGHTS * (MEANS**2 + VARIANCES)).sum()
    prior = (last * second_moment - last - math.log(1 - last)) / 2
    # the decoder: Gauss-Hermite in x_0 given its component, and in the noise
    z, w = np.polynomial.hermite_e.hermegauss(200)
    w = w / w.sum()
    x_0 = MEANS[:, None, None] + np.sqrt(VARIANCES)[:, None, None] * z[:, None]
    x_1 = np.sqrt(bar[nodes[0]]) * x_0 + np.sqrt(1 - bar[nodes[0]]) * z
    _, mean, _ = conditional(x_1, nodes[0])
    scale = np.sqrt((1 - bar[1]) / (1 - bar[2]) * (1 - bar[2] / bar[1]))
    distance = np.abs(x_0 - mean)  # the bin's mass is even in it, away from the open tails
    far, near = log_ndtr(-(distance + 1 / 255) / scale), log_ndtr(-(distance - 1 / 255) / scale)
    inner = near + np.log1p(-np.exp(far - near))
    below, above = log_ndtr((x_0 + 1 / 255 - mean) / scale), log_ndtr(-(x_0 - 1 / 255 - mean) / scale)
    log_mass = np.where(x_0 < -1 + 0.5 / 255, below, np.where(x_0 > 1 - 0.5 / 255, above, inner))
    decoder = -float(np.einsum("k,i,j,kij->", WEIGHTS, w, w, log_mass))
    return [decoder, *terms, prior]


@functools.cache
def line(total: int) -> tuple[Denoiser, Array]:
    schedule = LinearSchedule(total)
    denoiser = Denoiser(OracleNetwork((1,), LINE, schedule, num_features=1), schedule).eval()
    return denoiser, np.linspace(1e-4, 0.02, total) * 1000 / total


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    ("trajectory", "num_steps"),
    [(EvenTrajectory(), 1), (EvenTrajectory(), 2), (EvenTrajectory(), 6), (QuadraticTrajectory(), 5)],
)
def test_every_term_is_exact_on_a_mixture(name: str, trajectory: Trajectory, num_steps: int):
    denoiser, betas = line(100)
    strategy = STRATEGIES[name](denoiser)
    times = trajectory.times(denoiser.schedule, num_steps)
    count = 2000
    x_0 = LINE.sample(count, torch.Generator().manual_seed(1))
    bound = VariationalBound(denoiser, strategy, clip_x0=False)
    terms = bound.terms(x_0, times, NoiseStream(2, range(count), (1,), dtype=torch.float64))
    assert terms.dtype == torch.float64
    assert terms.shape == (len(times) + 1, count)
    exact = torch.tensor(exact_terms(name, strategy, (times * 100).round().int().tolist(), betas), dtype=torch.float64)
    error = terms.std(1) / count**0.5
    assert ((terms.mean(1) - exact).abs() < 4 * error + 1e-12).all(), (terms.mean(1), exact, error)
    total, total_error = terms.sum(0).mean(), terms.sum(0).std() / count**0.5
    assert (total - exact.sum()).abs() < 4 * total_error


@pytest.mark.parametrize("num_steps", [4, 6, 10])
def test_the_bound_decreases_with_better_covariances(mixture, make_oracle, num_steps: int):
    denoiser = make_oracle(mixture, LinearSchedule(1000))
    strategies = [BetaTilde(denoiser), Beta(denoiser), make_sparse_analytic(denoiser, num_steps), Exact(denoiser)]
    x_0 = mixture.sample(2000, torch.Generator().manual_seed(3))
    times = EvenTrajectory().times(denoiser.schedule, num_steps)

    def total(strategy: VarianceStrategy) -> Tensor:
        noise = NoiseStream(4, range(2000), (2,), dtype=torch.float64)
        return VariationalBound(denoiser, strategy, clip_x0=False).terms(x_0, times, noise).sum(0)

    totals = [total(strategy) for strategy in strategies]
    for worse, better in itertools.pairwise(totals):
        gain = worse - better  # paired: same data, same noise
        assert gain.mean() > 4 * gain.std() / 2000**0.5, [float(total.mean()) for total in totals]


def make_sparse_analytic(denoiser: Denoiser, num_steps: int) -> VarianceStrategy:
    """The exact E[C] / d at the visited times, by a large sample of the oracle's own trace."""
    strategy = Analytic(denoiser)
    schedule = denoiser.schedule
    g = torch.Generator().manual_seed(5)
    for t in EvenTrajectory().times(schedule, num_steps):
        x_0 = denoiser.network.mixture.sample(4000, g)
        level = denoiser.levels(t)
        x_t = denoiser.diffuse(x_0, torch.randn(x_0.shape, dtype=x_0.dtype, generator=g), level)
        _, covariance = denoiser.network.mixture.posterior(x_t, level.alpha, level.sigma)
        value = covariance.diagonal(dim1=1, dim2=2).mean() / level.noise_variance
        strategy.eps_variance[int((t * schedule.num_steps).round())] = value
    strategy.eps_variance.nan_to_num_(0.5)
    return strategy


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("make", [LinearSchedule, CosineSchedule, VPSDESchedule])
def test_every_number_of_steps_is_finite(make_oracle, name: str, make: Callable[[int], NoiseSchedule]):
    denoiser = make_oracle(LINE, make(21))
    strategy = STRATEGIES[name](denoiser)
    levels = torch.tensor([0, 1, 127, 200, 254, 255])
    x_0 = (levels / 127.5 - 1)[:, None]
    for trajectory in (EvenTrajectory(), DDIMStrideTrajectory()):
        for num_steps in (1, 2, 20, 21):
            times = trajectory.times(denoiser.schedule, num_steps)
            terms = VariationalBound(denoiser, strategy).terms(x_0.double(), times, stream(6))
            assert terms.isfinite().all()
            assert (terms >= -1e-9).all()  # divergences, and a mass of at most 1


def stream(count: int, seed: int = 0, shape: tuple[int, ...] = (1,)) -> NoiseStream:
    return NoiseStream(seed, range(count), shape, dtype=torch.float64)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (1, 100), (1, 50), (49, 50), (30, 77), (99, 100)])
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("clip", [False, True])
def test_a_transition_is_the_divergence_of_the_two_gaussians(name: str, s: int, t: int, clip: bool):
    denoiser, betas = line(100)
    strategy = STRATEGIES[name](denoiser) if name != "analytic" else Beta(denoiser)
    bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    x_0 = LINE.sample(6, torch.Generator().manual_seed(1)) * 1.5
    bound = VariationalBound(denoiser, strategy, clip_x0=clip)
    at_s, at_t = denoiser.levels(torch.tensor([s, t], dtype=torch.float64) / 100)
    noised = bound.observe(x_0, at_t, stream(6))
    found = bound.transition(noised, at_s)

    def posterior_mean(x_0: Tensor) -> Tensor:  # DDPM, Eq. 7, at the stride t - s
        ratio = bar[t] / bar[s]
        weight_0, weight_t = np.sqrt(bar[s]) * (1 - ratio) / (1 - bar[t]), np.sqrt(ratio) * (1 - bar[s]) / (1 - bar[t])
        return weight_0 * x_0 + weight_t * noised.prediction.x_t

    sigma = strategy.transition(ReverseKernel.from_levels(at_s, at_t), denoiser, noised.prediction).diagonal()
    beta_tilde = (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
    mean = noised.prediction.x0.clamp(-1, 1) if clip else noised.prediction.x0
    q, p = Normal(posterior_mean(x_0), beta_tilde**0.5), Normal(posterior_mean(mean), sigma.sqrt())
    assert_close(found, kl_divergence(q, p)[:, 0], rtol=1e-7, atol=1e-9)  # means that differ by rounding, over sigma


GAUSSIAN = GaussianMixture([[0.3, -0.2]], [[[0.05, 0.03], [0.03, 0.04]]])
PATHS = [LinearSchedule(1000), CosineSchedule(1000), VPSDESchedule(1000), FlowSchedule(1000), VESchedule(1000)]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


class Signs:
    """Data and noise at -1 and 1 in every combination: means of quadratics over them are exact."""

    def __init__(self) -> None:
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
        root = torch.linalg.cholesky(GAUSSIAN.covariances[0])
        self.x_0, self.eps = GAUSSIAN.mean() + corners[:, :2] @ root.T, corners[:, 2:]

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return self.eps


def gaussian_oracle(path: NoiseSchedule) -> Denoiser:
    return Denoiser(OracleNetwork((2,), GAUSSIAN, path, parameterization=X0(), num_features=1), path, X0()).eval()


def times_of(path: NoiseSchedule, count: int) -> Tensor:
    """Nearly even in log SNR, both ends of the grid among them; no signal need be left at the last."""
    ends = path.log_snr(torch.tensor([1 / path.num_steps, 1 - 1 / path.num_steps], dtype=torch.float64))
    inner = path.time(torch.linspace(float(ends[0]), float(ends[1]), count - 1, dtype=torch.float64))
    return torch.cat([inner, torch.ones(1, dtype=torch.float64)]) if count > 1 else inner.new_ones(1)


def exact_density(x_0: Tensor, mean: Tensor, log_variance: Tensor, data_range: DataRange, covariance: Tensor) -> Tensor:
    """A decoder for data that are not rounded: the density of ``q(x_0 | x_1)``."""
    return MultivariateNormal(mean, covariance).log_prob(x_0)


def bound_of(denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor) -> Tensor:
    """The terms at all signs, ``[K + 1, 16]``, with the decoder above."""
    first = denoiser.levels(times[0])
    covariance = GAUSSIAN.posterior(torch.zeros(1, 2), first.alpha, first.sigma)[1][0]
    bound = VariationalBound(denoiser, strategy, clip_x0=False, log_mass=partial(exact_density, covariance=covariance))
    signs = Signs()
    return bound.terms(signs.x_0, times, signs)


@every_path
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 100])
def test_terms_of_the_exact_covariance_are_information(path: NoiseSchedule, num_steps: int):
    """``I(x_0; x_s) - I(x_0; x_t)`` for a transition, at any stride, so that their sum has the same value for every K.

    ``I(x_0; x_t) = log det(I + snr_t S) / 2``; the prior's term is ``I(x_0; x_T) + KL(q(x_T) || prior)``.
    """
    denoiser, covariance = gaussian_oracle(path), GAUSSIAN.covariance()
    times = times_of(path, num_steps)
    terms = bound_of(denoiser, Exact(denoiser), times).mean(1)
    alpha, sigma = path.alpha(times), path.sigma(times)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    information = torch.log1p((alpha / sigma)[:, None] ** 2 * eigenvalues).sum(1) / 2
    assert_close(terms[1:-1], information[:-1] - information[1:], rtol=1e-6, atol=1e-9)
    prior_std = path.prior_std(path.levels(times[-1]))
    marginal = MultivariateNormal(
        alpha[-1] * GAUSSIAN.mean(), alpha[-1] ** 2 * covariance + sigma[-1] ** 2 * torch.eye(2, dtype=torch.float64)
    )
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), prior_std**2 * torch.eye(2, dtype=torch.float64))
    mismatch = kl_divergence(marginal, prior)
    assert_close(terms[-1], information[-1] + mismatch, rtol=1e-9, atol=1e-10)
    entropy = MultivariateNormal(GAUSSIAN.mean(), covariance).entropy()
    assert_close(terms.sum(), entropy + mismatch, rtol=1e-9, atol=1e-9)


@every_path
@pytest.mark.parametrize("num_steps", [2, 7])
def test_the_bound_of_each_datum_is_exact_but_for_the_prior(path: NoiseSchedule, num_steps: int):
    """``-log q(x_0) + E[log q(x_T) - log prior(x_T) | x_0]``; of data that are not centred the last has either sign."""
    denoiser = gaussian_oracle(path)
    terms = bound_of(denoiser, Exact(denoiser), times_of(path, num_steps)).sum(0).reshape(4, 4).mean(1)
    signs, last = Signs(), path.levels(torch.ones((), dtype=torch.float64))
    x_0, eye = signs.x_0[::4], torch.eye(2, dtype=torch.float64)
    x_last = last.alpha * x_0[:, None] + last.sigma * signs.eps[:4]
    marginal = MultivariateNormal(
        last.alpha * GAUSSIAN.mean(), last.alpha**2 * GAUSSIAN.covariance() + last.sigma**2 * eye
    )
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), path.prior_std(last) ** 2 * eye)
    mismatch = (marginal.log_prob(x_last) - prior.log_prob(x_last)).mean(1)
    exact = MultivariateNormal(GAUSSIAN.mean(), GAUSSIAN.covariance())
    assert_close(terms, mismatch - exact.log_prob(x_0), rtol=1e-9, atol=1e-8)


@every_path
@pytest.mark.parametrize("strategy", [BetaTilde, Beta])
def test_terms_of_other_covariances_are_divergences(path: NoiseSchedule, strategy: type[VarianceStrategy]):
    """``(lambda^2 tr Sigma^-1 - d + log det Sigma - d log lambda^2 + c^2 tr(Sigma^-1 C)) / 2``."""
    denoiser = gaussian_oracle(path)
    times = times_of(path, 6)
    terms = bound_of(denoiser, strategy(denoiser), times).mean(1)
    alpha, sigma = path.alpha(times), path.sigma(times)
    for i in range(1, 6):
        ratio = alpha[i] / alpha[i - 1]
        beta = sigma[i] ** 2 - ratio**2 * sigma[i - 1] ** 2
        beta_tilde = beta * sigma[i - 1] ** 2 / sigma[i] ** 2
        c_squared = (alpha[i - 1] * beta / sigma[i] ** 2) ** 2
        variance = 0.0 if strategy is BetaTilde else (sigma[i] ** 2).clamp(max=1.0)  # the bound for data on [-1, 1]
        step = beta_tilde + c_squared * variance
        posterior = GAUSSIAN.posterior(torch.zeros(1, 2), alpha[i], sigma[i])[1][0]
        kl = (2 * beta_tilde + c_squared * posterior.trace()) / step - 2 + 2 * (step / beta_tilde).log()
        assert_close(terms[i], kl / 2, rtol=1e-6, atol=1e-9)


@every_path
@pytest.mark.parametrize("strategy", [BetaTilde, Beta])
def test_the_bound_converges_to_the_exact_value(path: NoiseSchedule, strategy: type[VarianceStrategy]):
    """From above, at first order in 1/K, whatever the covariance; the exact covariance is there at K = 1."""
    denoiser = gaussian_oracle(path)
    exact = bound_of(denoiser, Exact(denoiser), times_of(path, 1)).mean(1).sum()
    coarse, fine = (
        float(bound_of(denoiser, strategy(denoiser), times_of(path, num_steps)).mean(1).sum() - exact)
        for num_steps in (60, 120)
    )
    assert coarse / fine == pytest.approx(2, abs=0.3)  # 1.8 at the least: the next order at 1/60


@every_path
def test_the_decoder_is_the_mean_log_mass(path: NoiseSchedule):
    """``x_0 - m`` has the variance of ``x_0 | x_t``: its mean log mass in one dimension, by quadrature."""
    mixture = GaussianMixture([[0.3]], [0.01])
    denoiser = Denoiser(OracleNetwork((1,), mixture, path, parameterization=X0(), num_features=1), path, X0()).eval()
    z = torch.linspace(-7, 7, 141, dtype=torch.float64)  # the trapezoidal rule converges beyond all orders
    x_0, eps = torch.cartesian_prod(z, z).T[..., None]
    weight = (-(x_0**2 + eps**2) / 2).exp()[:, 0]

    class Nodes:
        def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
            return eps

    bound = VariationalBound(denoiser, BetaTilde(denoiser), clip_x0=False)
    grid = path.levels(path.grid()[:2])
    decoder = bound.decoder(bound.observe(0.3 + 0.1 * x_0, grid[0], Nodes()))
    first, second = ((level.alpha / level.sigma) ** 2 for level in grid)
    scale = grid[0].sigma * (1 - second / first).sqrt()  # of beta_tilde(1, 2)
    error = (1 / (100 + first)).sqrt() * torch.linspace(-9, 9, 4001, dtype=torch.float64)
    near, far = (torch.special.log_ndtr((side / 255 - error.abs()) / scale) for side in (1, -1))
    log_mass = near + torch.log(-torch.expm1(far - near))
    density = (-(error**2) * (100 + first) / 2).exp()
    expected = -(density * log_mass).sum() / density.sum()
    assert_close((weight * decoder).sum() / weight.sum(), expected, rtol=1e-6, atol=1e-9)


def test_the_decoder_is_that_of_the_full_chain_at_any_stride():
    """Its variance is beta_tilde(1, 2) of the grid, wherever the trajectory starts."""
    denoiser, _ = line(100)
    bound = VariationalBound(denoiser, BetaTilde(denoiser), clip_x0=False, log_mass=lambda x, m, v, r: v.expand(len(x)))
    schedule = denoiser.schedule
    s, t = schedule.grid()[:2]
    beta_tilde = schedule.variance_between(s, t) * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
    for first in (1, 7, 100):
        level = schedule.levels(schedule.grid()[first - 1])
        noised = bound.observe(torch.zeros(3, 1, dtype=torch.float64), level, stream(3))
        assert_close(bound.decoder(noised), -beta_tilde.log().expand(3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("clip_x0", [True, False])
def test_clipping_is_to_the_range_of_the_data(clip_x0: bool):
    """A mean beyond the range enters every term at its end, and the covariance is bounded by the range."""

    class Beyond(nn.Module):
        data_shape, feature_channels = (1,), 1

        def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(x_t, 1.5), x_t

    schedule = LinearSchedule(100)
    denoiser = Denoiser(Beyond(), schedule, X0(), data_range=DataRange(0.0, 1.0))
    bound = VariationalBound(denoiser, BetaTilde(denoiser), clip_x0)
    levels = schedule.levels(schedule.grid()[[0, 49]])
    noised = bound.observe(torch.ones(1, 1, dtype=torch.float64), levels[1], stream(1))
    assert float(noised.mean) == (1.0 if clip_x0 else 1.5)
    assert float(noised.prediction.x0) == 1.5
    assert (float(bound.transition(noised, levels[0])) == 0) is clip_x0
    assert Beta(denoiser).bounded_covariance(denoiser, noised.prediction).diagonal().item() == 0.25


def test_labels_are_passed_to_the_network():
    mixture = GaussianMixture([[-0.5], [0.5]], [0.01, 0.01])
    schedule = LinearSchedule(100)
    denoiser = Denoiser(OracleNetwork((1,), mixture, schedule, num_classes=2), schedule)
    bound = VariationalBound(denoiser, BetaTilde(denoiser))
    x_0 = torch.tensor([[-0.5], [-0.5]], dtype=torch.float64)
    terms = bound.terms(x_0, schedule.grid()[[9, -1]], stream(2), condition=torch.tensor([0, 1]))
    assert terms[0, 1] > 20 * terms[0, 0]  # the label of the other component


def test_data_without_grey_levels_are_refused():
    denoiser, _ = line(100)
    for data_range in (DataRange(None, None), DataRange(num_levels=None)):
        continuous = Denoiser(denoiser.network, denoiser.schedule, data_range=data_range)
        with pytest.raises(ValueError, match=r"data_range must have grey levels"):
            VariationalBound(continuous, Beta(continuous))


def test_one_step_schedules_are_refused():
    schedule = CosineSchedule(1)
    denoiser = Denoiser(line(100)[0].network, schedule)
    with pytest.raises(ValueError, match=r"schedule\.num_steps .*\(got 1\)"):
        VariationalBound(denoiser, Beta(denoiser))


@every_path
def test_the_bound_on_a_density_meets_the_exact_one(path: NoiseSchedule):
    """On Gaussian data, with the exact covariance: what is left is the last term's, and the prior's."""
    denoiser = Denoiser(
        OracleNetwork((2,), GAUSSIAN, path, parameterization=X0()), path, X0(), data_range=DataRange(None, None)
    ).eval()
    times = times_of(path, 10)
    signs = Signs()
    bound = DensityBound(denoiser, Exact(denoiser)).terms(signs.x_0, times, signs)
    first, last = denoiser.levels(times[0]), denoiser.levels(times[-1])
    zero, one = torch.zeros(2), torch.ones(())
    entropy = -GAUSSIAN.log_density(signs.x_0, one, zero[0]).mean()
    # KL of the exact q(x_0 | x_1) from N(m, r I), and of the marginal at the last time from the prior
    posterior = MultivariateNormal(zero.double(), GAUSSIAN.posterior(zero[None], first.alpha, first.sigma)[1][0])
    decoder = kl_divergence(posterior, MultivariateNormal(zero.double(), first.noise_variance * torch.eye(2).double()))
    eye = torch.eye(2, dtype=torch.float64)
    marginal = MultivariateNormal(
        last.alpha * GAUSSIAN.mean(), last.alpha**2 * GAUSSIAN.covariance() + last.sigma**2 * eye
    )
    prior = kl_divergence(marginal, MultivariateNormal(zero.double(), path.prior_std(last) ** 2 * eye))
    assert_close(bound.sum(0).mean(), entropy + decoder + prior, rtol=1e-6, atol=1e-8)
    assert decoder < 0.02  # the last term is nearly exact where sigma_1 is small
