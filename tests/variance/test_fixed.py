"""The two fixed variances, as models of C and as variances of a step."""

import math

import pytest
import torch
from torch.testing import assert_close

from optcov.covariance import DiagonalCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.oracle import GaussianMixture
from optcov.schedule import CosineSchedule, NoiseSchedule
from optcov.variance.base import Calibrated, Closed, Trained, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde

UNIT = GaussianMixture([[0.0, 0.0]], [1.0])
X_T = torch.tensor([[0.3, -1.0], [2.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("t", [torch.tensor(0.5).double(), torch.tensor([0.25, 1.0]).double()], ids=["0-dim", "batch"])
def test_models_of_the_covariance(make_oracle, t: torch.Tensor):
    schedule = CosineSchedule(4)
    denoiser = make_oracle(UNIT, schedule)
    prediction = denoiser(X_T, denoiser.levels(t))
    zero = BetaTilde(denoiser).covariance(denoiser, prediction).diagonal()
    assert_close(zero, torch.zeros_like(X_T), rtol=0, atol=0)
    sigma_sq = (1 - schedule.alpha(t) ** 2).expand(2)[:, None].expand(2, 2)
    beta = Beta(denoiser).covariance(denoiser, prediction).diagonal()
    assert_close(beta, sigma_sq, rtol=1e-10, atol=1e-12)
    exact = UNIT.posterior(X_T, schedule.alpha(t), schedule.sigma(t))[1].diagonal(dim1=1, dim2=2)
    assert_close(beta, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("strategy", "power"), [(BetaTilde, 1), (Beta, 0)])
def test_variances_of_a_ddpm_step(make_oracle, schedule: NoiseSchedule, strategy: type[VarianceStrategy], power: int):
    denoiser: Denoiser = make_oracle(UNIT, schedule)
    n = schedule.num_steps
    for pair in [(0, 1), (1, 2), (1, n), (n - 1, n), (n // 2, n)]:
        s, t = torch.tensor(pair, dtype=torch.float64) / n
        level = schedule.levels(t)
        kernel = ReverseKernel.from_levels(schedule.levels(s), level)
        step = strategy(denoiser).transition(kernel, denoiser, denoiser(X_T, level)).diagonal()
        beta = 1 - (schedule.alpha(t) / schedule.alpha(s)) ** 2
        expected = beta * (schedule.sigma(s) / schedule.sigma(t)) ** (2 * power)
        assert_close(step, expected.expand(2, 2), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("strategy", [BetaTilde, Beta])
def test_nothing_to_fit_and_every_eta_allowed(make_oracle, strategy: type[VarianceStrategy]):
    fixed = strategy(make_oracle(UNIT, CosineSchedule(4)))
    assert isinstance(fixed, Closed)
    assert not isinstance(fixed, Calibrated | Trained)
    assert not list(fixed.parameters()) + list(fixed.buffers())
    for eta in (0.0, 0.5, 1.0):
        fixed.check_step(eta)


class Constant(Closed):
    def covariance(self, denoiser, prediction):
        return DiagonalCovariance(torch.tensor([[-0.5, 0.4], [3.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (None, None)])
def test_a_transition_bounds_c_by_the_range_of_the_data(make_oracle, eta: float, low: float | None, high: float | None):
    """((high - low) / 2)^2 for data between them; data of unknown support have no bound but 0."""
    schedule = CosineSchedule(4)
    denoiser = Denoiser(make_oracle(UNIT, schedule).network, schedule, data_range=DataRange(low, high))
    level, strategy = schedule.levels(torch.tensor(0.75).double()), Constant(denoiser)
    kernel = ReverseKernel.from_levels(schedule.levels(torch.tensor(0.5).double()), level, eta)
    step = strategy.transition(kernel, denoiser, denoiser(X_T, level)).diagonal()
    bound = math.inf if low is None else (high - low) ** 2 / 4
    clamped = torch.tensor([[0, 0.4], [3, 1]], dtype=torch.float64).clamp(max=bound)
    assert_close(step, kernel.lambda_sq + kernel.c**2 * clamped, rtol=1e-12, atol=1e-14)
