"""The variational bound against its exact value on mixtures, which is written here anew by quadrature in NumPy."""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from optcov.bound import VariationalBound
from scipy.special import log_ndtr, logsumexp
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood import gaussian_kl_between, pixel_log_mass, pixel_log_mass_tanh
from optcov.oracle import GaussianMixture
from optcov.sampler.noise import NoiseStream
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import DDIMStrideTrajectory, EvenTrajectory, QuadraticTrajectory, Trajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange

Array = NDArray[np.float64]
MEANS, VARIANCES, WEIGHTS = np.array([-0.6, 0.1, 0.5]), np.array([0.01, 0.04, 0.0025]), np.array([0.5, 0.2, 0.3])
LINE = GaussianMixture(MEANS[:, None].tolist(), VARIANCES.tolist(), WEIGHTS.tolist())


class Dense(Covariance):
    """A matrix per sample, with the operations that a bound asks for; ``inv_trace`` is left to the base."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        eye = torch.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)
        return Dense(scale.reshape(-1, 1, 1) * self.matrix + shift.reshape(-1, 1, 1) * eye)

    def clamp(self, low: float | Tensor, high: float | Tensor) -> Covariance:
        values, vectors = torch.linalg.eigh(self.matrix)
        return Dense(vectors @ values.clamp(low, high).diag_embed() @ vectors.mT)

    def sqrt_mul(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=1, dim2=2)

    def inv_quad(self, v: Tensor) -> Tensor:
        return (v * torch.linalg.solve(self.matrix, v)).sum(1)

    def logdet(self) -> Tensor:
        return torch.logdet(self.matrix)


class Exact(VarianceStrategy):
    """The oracle's full ``Cov[x_0 | x_t]``."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.mixture = denoiser.network.mixture

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        return Dense(self.mixture.posterior(x_t, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))[1])


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

    x = np.linspace(-6, 6, 24_001)
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
    from optcov.oracle import OracleNetwork

    schedule = LinearSchedule(total)
    denoiser = Denoiser(OracleNetwork((1,), LINE, schedule), schedule).eval()
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
    count = 4000
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
        x_0 = denoiser.network.mixture.sample(20_000, g)
        x_t = denoiser.diffuse(x_0, torch.randn(x_0.shape, dtype=x_0.dtype, generator=g), t)
        _, covariance = denoiser.network.mixture.posterior(x_t, schedule.alpha(t), schedule.sigma(t))
        value = covariance.diagonal(dim1=1, dim2=2).mean() * schedule.log_snr(t).exp()
        strategy.eps_variance[int((t * schedule.num_steps).round())] = value
    strategy.eps_variance.nan_to_num_(0.5)
    return strategy


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("make", [LinearSchedule, CosineSchedule])
def test_every_number_of_steps_is_finite(name: str, make: Callable[[int], NoiseSchedule]):
    denoiser = Denoiser(line(21)[0].network, make(21)).eval()
    denoiser.network.schedule = denoiser.schedule
    strategy = STRATEGIES[name](denoiser)
    levels = torch.tensor([0, 1, 127, 200, 254, 255])
    x_0 = (levels / 127.5 - 1)[:, None]
    for trajectory in (EvenTrajectory(), DDIMStrideTrajectory()):
        for num_steps in (1, 2, 3, 10, 20, 21):
            times = trajectory.times(denoiser.schedule, num_steps)
            terms = VariationalBound(denoiser, strategy).terms(x_0.double(), times, stream(6))
            assert terms.isfinite().all()
            assert (terms >= -1e-9).all()  # divergences, and a mass of at most 1
    line.cache_clear()


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
    noised = bound.observe(x_0, torch.tensor(t / 100, dtype=torch.float64), stream(6))
    found = bound.transition(noised, torch.tensor(s / 100, dtype=torch.float64))

    def posterior_mean(x_0: Tensor) -> Tensor:  # DDPM, Eq. 7, at the stride t - s
        ratio = bar[t] / bar[s]
        weight_0, weight_t = np.sqrt(bar[s]) * (1 - ratio) / (1 - bar[t]), np.sqrt(ratio) * (1 - bar[s]) / (1 - bar[t])
        return weight_0 * x_0 + weight_t * noised.x_t

    kernel = ReverseKernel.between(denoiser.schedule, torch.tensor(s / 100, dtype=torch.float64), noised.t)
    sigma = strategy.transition(kernel, denoiser, noised.prediction, noised.x_t, noised.t).diagonal()
    beta_tilde = (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
    mean = noised.prediction.x0.clamp(-1, 1) if clip else noised.prediction.x0
    q, p = Normal(posterior_mean(x_0), beta_tilde**0.5), Normal(posterior_mean(mean), sigma.sqrt())
    assert_close(found, kl_divergence(q, p)[:, 0], rtol=1e-7, atol=1e-9)  # means that differ by rounding, over sigma


def random_covariance(kind: str, g: torch.Generator) -> tuple[Covariance, Tensor]:
    if kind == "dense":
        root = torch.randn(5, 4, 4, generator=g, dtype=torch.float64)
        matrix = root @ root.mT + 0.1 * torch.eye(4)
        return Dense(matrix), matrix
    if kind == "diagonal":
        variance = 0.1 + torch.rand(5, 4, generator=g, dtype=torch.float64)
        return DiagonalCovariance(variance), variance.diag_embed()
    variance = 0.1 + torch.rand(5, generator=g, dtype=torch.float64)
    return IsotropicCovariance(variance, (4,)), variance[:, None, None] * torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "dense"])
def test_divergence_for_every_kind_of_covariance(kind: str):
    g = torch.Generator().manual_seed(0)
    covariance, matrix = random_covariance(kind, g)
    assert_close(covariance.inv_trace(), torch.linalg.inv(matrix).diagonal(dim1=1, dim2=2).sum(1))
    difference = torch.randn(5, 4, generator=g, dtype=torch.float64)
    variance = torch.tensor(0.37, dtype=torch.float64)
    q = MultivariateNormal(difference, variance * torch.eye(4, dtype=torch.float64))
    p = MultivariateNormal(torch.zeros(5, 4, dtype=torch.float64), matrix)
    assert_close(gaussian_kl_between(difference, variance, covariance), kl_divergence(q, p))


def test_divergence_keeps_its_precision_in_float32():
    """A thousand transitions of 3072 dimensions must not lose a ten-thousandth of a bit per dimension to rounding."""
    g = torch.Generator().manual_seed(0)
    variance = 1e-4 * (1 + 1e-3 * torch.rand(4, 3072, generator=g, dtype=torch.float64))
    difference = 1e-4 * torch.randn(4, 3072, generator=g, dtype=torch.float64)
    lambda_sq = torch.tensor(1e-4, dtype=torch.float64)
    exact = gaussian_kl_between(difference, lambda_sq, DiagonalCovariance(variance))
    single = gaussian_kl_between(difference.float(), lambda_sq, DiagonalCovariance(variance.float()))
    assert (single - exact).abs().max() / (3072 * math.log(2)) * 1000 < 1e-3


def test_tanh_masses_come_close_to_the_exact_ones():
    x_0 = (torch.arange(256) / 127.5 - 1).double()[:, None]
    for log_variance in (-9.2, -6.0, -2.0):
        variance = torch.tensor(log_variance, dtype=torch.float64)
        mean = torch.tensor(0.1234, dtype=torch.float64)
        exact, tanh = (f(x_0, mean, variance) for f in (pixel_log_mass, pixel_log_mass_tanh))
        assert_close(exact.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        assert_close(tanh.exp(), exact.exp(), rtol=0, atol=7e-4)  # Phi is off by 3e-4 at each edge
        assert tanh.min() >= math.log(1e-12) - 1e-9


def test_one_step_schedules_are_refused():
    schedule = CosineSchedule(1)
    denoiser = Denoiser(line(100)[0].network, schedule)
    with pytest.raises(ValueError, match=r"schedule\.num_steps = 1"):
        VariationalBound(denoiser, Beta(denoiser))
