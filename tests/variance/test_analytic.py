"""Analytic covariances against quadrature over x_t, with an exact and with a biased mean, and their standard errors."""

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture
from optcov.schedule import NoiseSchedule, VPSDESchedule
from optcov.variance.analytic import Analytic
from optcov.variance.base import Calibrated, Trained

SCHEDULE = VPSDESchedule(6)
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]
variants = pytest.mark.parametrize(("per_pixel", "imperfect"), VARIANTS)


class Biased(nn.Module):
    """A noise predictor that is off by a scale and a shift of each coordinate."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels = network, network.data_shape, network.feature_channels

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, features = self.network(x_t, time)
        return bias(output), features


def bias(eps: Tensor) -> Tensor:
    return 0.8 * eps + torch.tensor([0.3, -0.1], dtype=eps.dtype)


def expectation(mixture: GaussianMixture, schedule: NoiseSchedule, t: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """``E[f(e(x_t))]`` with the exact e, by quadrature over the plane."""
    axis = torch.linspace(-6, 6, 121, dtype=torch.float64)
    x_t = torch.cartesian_prod(axis, axis)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    weight = mixture.log_density(x_t, alpha, sigma).exp()
    assert_close(weight.sum() * 0.1**2, torch.tensor(1.0, dtype=torch.float64), rtol=1e-5, atol=0)
    return weight / weight.sum() @ f(-sigma * mixture.score(x_t, alpha, sigma))


@functools.cache
def exact_table(mixture: GaussianMixture, biased: bool) -> Tensor:
    """``E[(eps - e')^2] = E[Var[eps|x_t]] + E[(e - e')^2]`` of each pixel, n = 1..N, where ``E Var = 1 - E[e^2]``."""

    def at(t: Tensor) -> Tensor:
        error = expectation(mixture, SCHEDULE, t, lambda e: (e - bias(e)) ** 2) if biased else 0
        return 1 - expectation(mixture, SCHEDULE, t, lambda e: e**2) + error

    return torch.stack([at(t) for t in SCHEDULE.grid()])


def batches(mixture: GaussianMixture, seed: int, count: int = 2, size: int = 100) -> Iterator[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (mixture.sample(size, g) for _ in range(count))


def reduce(table: Tensor, per_pixel: bool) -> Tensor:
    return table if per_pixel else table.mean(1)


@variants
def test_table_is_the_exact_conditional_variance(mixture, make_oracle, per_pixel: bool, imperfect: bool):
    denoiser = make_oracle(mixture, SCHEDULE)
    strategy = Analytic(denoiser, per_pixel, imperfect)
    strategy.calibrate(denoiser, batches(mixture, 1, 8, 1000), seed=2)
    exact = reduce(exact_table(mixture, biased=False), per_pixel)
    assert strategy.eps_variance.dtype == torch.float64
    error = strategy.eps_variance[1:] - exact
    # four standard errors; and they are small, so that the comparison means something
    assert (error.abs() < 4 * strategy.eps_variance_se[1:]).all(), (error / strategy.eps_variance_se[1:]).tolist()
    assert (strategy.eps_variance_se[1:] < 0.02).all()


@pytest.mark.parametrize("per_pixel", [False, True])
def test_imperfect_variant_measures_the_error_of_a_biased_mean(mixture, make_oracle, per_pixel: bool):
    denoiser = Denoiser(Biased(make_oracle(mixture, SCHEDULE).network), SCHEDULE)
    strategy = Analytic(denoiser, per_pixel, imperfect_mean=True)
    strategy.calibrate(denoiser, batches(mixture, 3, 8, 1000), seed=4)
    exact = reduce(exact_table(mixture, biased=True), per_pixel)
    z = (strategy.eps_variance[1:] - exact) / strategy.eps_variance_se[1:]
    assert z.abs().max() < 4
    unbiased = reduce(exact_table(mixture, biased=False), per_pixel)
    assert ((exact - unbiased) / strategy.eps_variance_se[1:]).min() > 5  # the bias is visible at every time


@pytest.mark.parametrize(("per_pixel", "imperfect"), [(False, False), (True, True)])
def test_standard_errors_are_honest(mixture, make_oracle, per_pixel: bool, imperfect: bool):
    denoiser = make_oracle(mixture, SCHEDULE)
    exact = reduce(exact_table(mixture, biased=False), per_pixel)
    scores = []
    for seed in range(160):
        strategy = Analytic(denoiser, per_pixel, imperfect, batch_size=1200)  # one call
        strategy.calibrate(denoiser, batches(mixture, 100 + seed), seed=seed)
        scores.append((strategy.eps_variance[1:] - exact) / strategy.eps_variance_se[1:])
    z = torch.stack(scores)
    # mean of z within 4 / sqrt(160), rms within 4 / sqrt(2 * 160) of 1: all times share the noise of a repeat
    assert z.mean(0).abs().max() < 4 / 160**0.5
    assert abs(z.square().mean().sqrt() - 1) < 4 / (2 * 160) ** 0.5


@variants
def test_covariance_is_r_times_the_table(mixture, make_oracle, per_pixel: bool, imperfect: bool):
    denoiser = make_oracle(mixture, SCHEDULE)
    strategy = Analytic(denoiser, per_pixel, imperfect)
    strategy.calibrate(denoiser, batches(mixture, 1), seed=2)
    assert strategy.eps_variance.shape == ((7, 2) if per_pixel else (7,))
    assert strategy.eps_variance_se.shape == strategy.eps_variance.shape
    x_t = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = torch.tensor([1, 4, 6])
    t = n.double() / 6
    r = (1 - SCHEDULE.alpha(t) ** 2) / SCHEDULE.alpha(t) ** 2
    expected = r[:, None] * strategy.eps_variance[n].reshape(3, -1).expand(3, 2)
    each = strategy.covariance(denoiser, denoiser(x_t, SCHEDULE.levels(t))).diagonal()
    assert_close(each, expected, rtol=1e-10, atol=0)
    one = strategy.covariance(denoiser, denoiser(x_t, SCHEDULE.levels(t[1]))).diagonal()
    assert_close(one, expected[1].expand(3, 2), rtol=1e-10, atol=0)


def test_calibration_is_kept_and_repeats(mixture, make_oracle):
    denoiser = make_oracle(mixture, SCHEDULE)
    first, again, other = (Analytic(denoiser) for _ in range(3))
    for strategy, seed in ((first, 1), (again, 1), (other, 2)):
        strategy.calibrate(denoiser, batches(mixture, 1), seed=seed)
    assert torch.equal(first.eps_variance, again.eps_variance)
    assert not torch.equal(first.eps_variance, other.eps_variance)
    loaded = Analytic(denoiser)
    loaded.load_state_dict(first.state_dict())
    assert torch.equal(loaded.eps_variance, first.eps_variance)
    assert isinstance(first, Calibrated)
    assert not isinstance(first, Trained)
    first.calibrate(denoiser, batches(mixture, 1), seed=2)  # a second pass replaces the first
    assert torch.equal(first.eps_variance, other.eps_variance)
