"""Conditioning on a measurement: Gaussian data, where a chain is the exact posterior, limits, and refusals."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import Covariance, FullCovariance, MatrixFreeCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import MeasurementGuidance
from optcov.inverse import Mask, MatrixOperator
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0, Eps, Parameterization, V, Velocity
from optcov.sampler import DDIMSampler, DDPMSampler, PredictorCorrectorSampler, Sampler, sample
from optcov.sampler.noise import NoiseStream
from optcov.schedule import FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange

DIM, NOISE = 4, 0.1
ROOT = torch.randn(DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
GAUSSIAN = GaussianMixture([[0.2, -0.1, 0.3, 0.0]], (0.05 * ROOT @ ROOT.T + 0.01 * torch.eye(DIM))[None])
MASK = Mask((DIM,), torch.tensor([1, 0, 1, 0]))
Y = torch.tensor([0.5, -0.4], dtype=torch.float64)
LINEAR = LinearSchedule(1000)


class Exact(Closed):
    """The exact Cov[x_0 | x_t], in full."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        matrix = denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]
        return FullCovariance(matrix.to(prediction.x_t.dtype), denoiser.data_shape)


class MatrixFree(Exact):
    """The same, known by its products."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return MatrixFreeCovariance(super().covariance(denoiser, prediction).matvec, prediction.x_t, DIM)


def exact(
    schedule: NoiseSchedule = LINEAR, kind: type[Parameterization] = Eps, mixture: GaussianMixture = GAUSSIAN
) -> Denoiser:
    network = OracleNetwork((mixture.dim,), mixture, schedule, parameterization=kind())
    return Denoiser(network, schedule, kind(), data_range=DataRange(None, None)).eval()


class Units:
    """A stream in which row i of a batch has a 1 as its i-th number after those of row 0 .. first, and 0 elsewhere."""

    def __init__(self, first: int, size: int) -> None:
        self.position, self.size = first, size

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        count = torch.Size((DIM,) if shape is None else shape).numel()
        numbers = torch.zeros(self.size, count, dtype=torch.float64)
        rows = torch.arange(self.position, min(self.position + count, self.size))
        numbers[rows, rows - self.position] = 1
        self.position += count
        return numbers.reshape(self.size, *((DIM,) if shape is None else shape))


def law(
    denoiser: Denoiser, sampler: Sampler, times: Tensor, guidance: MeasurementGuidance, posterior: GaussianMixture
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a chain from the exact p(x_t | y), which is linear in its start and in its noise."""
    level, size = denoiser.levels(times[-1]), 1 + DIM + 16 * DIM * len(times)
    covariance = level.alpha**2 * posterior.covariance() + level.sigma**2 * torch.eye(DIM)
    start = (level.alpha * posterior.mean()).expand(size, DIM).clone()
    start[1 : 1 + DIM] += torch.linalg.cholesky(covariance).T
    noise = Units(1 + DIM, size)
    x = sampler.sample(denoiser, Exact(denoiser), times, noise, guidance=guidance, start=start)
    assert noise.position <= size
    responses = x - x[0]
    return x[0], responses.T @ responses


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [(LINEAR, Eps), (LINEAR, V), (FlowSchedule(1000), Velocity), (VESchedule(1000, 0.01, 5.0), X0)],
    ids=["vp-eps", "vp-v", "flow", "ve"],
)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_on_gaussian_data_a_chain_of_any_length_is_the_posterior(
    schedule: NoiseSchedule, kind: type[Parameterization], eta: float
) -> None:
    denoiser = exact(schedule, kind)
    for operator in (MASK, MatrixOperator.random((DIM,), 2)):
        posterior = GAUSSIAN.measured(operator.matrix(Y), Y, NOISE)
        guidance = MeasurementGuidance(denoiser, operator=operator, y=Y, noise=NOISE)
        for times in ([0.5, 1.0], [0.1, 0.2, 0.7]):
            sampler = DDIMSampler(len(times), eta, clip_x0=False, cut=None)
            mean, covariance = law(denoiser, sampler, torch.tensor(times).double(), guidance, posterior)
            # rounding of 1 - alpha^2 at t = 1, and eigenvalues of C' near 0 in draws
            assert_close(mean, posterior.mean(), rtol=1e-6, atol=1e-7)
            assert_close(covariance, posterior.covariance(), rtol=1e-6, atol=1e-7)


def test_a_last_step_without_noise_returns_the_mean() -> None:
    denoiser, posterior = exact(), GAUSSIAN.measured(MASK.matrix(Y), Y, NOISE)
    guidance = MeasurementGuidance(denoiser, operator=MASK, y=Y, noise=NOISE, estimate="mean")
    mean, covariance = law(denoiser, DDPMSampler(1, False, None), torch.ones(1).double(), guidance, posterior)
    assert_close(mean, posterior.mean(), rtol=1e-6, atol=1e-7)
    assert float(covariance.abs().max()) < 1e-3  # of the mean given x_1, which says next to nothing of x_0


def drawn(denoiser: Denoiser, guidance: MeasurementGuidance | None, count: int = 5, dim: int = DIM) -> Tensor:
    noise = NoiseStream(0, range(count), (dim,), dtype=torch.float64)
    times = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    return DDPMSampler(3).sample(denoiser, Exact(denoiser), times, noise, guidance=guidance)


def test_limits_of_noise_and_of_what_is_measured(mixture: GaussianMixture) -> None:
    """No measurement is no guidance, bitwise; without noise what is measured is kept; all of it leaves nothing open."""
    denoiser = exact(mixture=mixture)
    first = Mask((2,), torch.tensor([1, 0]))
    none = MeasurementGuidance(denoiser, operator=first, y=torch.ones(1), noise=float("inf"))
    assert torch.equal(drawn(denoiser, none, dim=2), drawn(denoiser, None, dim=2))
    loud = MeasurementGuidance(denoiser, operator=first, y=torch.ones(1), noise=1e6, estimate="mean")
    assert_close(drawn(denoiser, loud, dim=2), drawn(denoiser, None, dim=2), rtol=0, atol=1e-6)
    y = torch.tensor([0.4, 0.1], dtype=torch.float64)
    still = drawn(denoiser, MeasurementGuidance(denoiser, operator=first, y=y[:1], noise=1e-4), dim=2)
    assert_close(still[:, 0], y[:1].expand(5), rtol=0, atol=1e-3)
    assert float(still[:, 1].std()) > 0.01
    everything = MeasurementGuidance(denoiser, operator=Mask((2,), torch.ones(2)), y=y, noise=1e-4)
    assert_close(drawn(denoiser, everything, dim=2), y.expand(5, 2), rtol=0, atol=1e-3)


def test_several_measurements_are_one_for_each_sample(mixture: GaussianMixture) -> None:
    denoiser, operator = exact(mixture=mixture), Mask((2,), torch.tensor([1, 0]))
    y = torch.linspace(-0.5, 0.5, 5)[:, None]
    together = drawn(denoiser, MeasurementGuidance(denoiser, operator=operator, y=y, noise=NOISE), dim=2)
    alone = drawn(denoiser, MeasurementGuidance(denoiser, operator=operator, y=y[3], noise=NOISE), dim=2)
    assert_close(together[3], alone[3], rtol=0, atol=1e-12)
    assert_close(together[:, 0], y[:, 0].double(), rtol=0, atol=4 * NOISE)
    with pytest.raises(ValueError, match=r"y must be one measurement, or one for each of 4 samples \(got 5\)"):
        drawn(denoiser, MeasurementGuidance(denoiser, operator=operator, y=y), count=4, dim=2)


def test_noise_of_another_unit_is_said() -> None:
    denoiser, x_0 = exact(), GAUSSIAN.sample(1, torch.Generator().manual_seed(0))
    operator = MatrixOperator.random((DIM,), 200)
    y = operator(x_0) + 0.2 * torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match=r"noise should be near 0\.\d+ \(got 0\.1, which is [12]\.\d times smaller"):
        drawn(denoiser, MeasurementGuidance(denoiser, operator=operator, y=y, noise=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(denoiser, MeasurementGuidance(denoiser, operator=operator, y=y, noise=0.2))
        few = MatrixOperator.random((DIM,), 3)  # of which no more can be said where one stands there for each sample
        drawn(denoiser, MeasurementGuidance(denoiser, operator=few, y=(few(x_0) + 0.2).expand(5, 3), noise=0.2))


def test_solutions_that_stop_early_are_said() -> None:
    denoiser, operator = exact(), MatrixOperator.random((DIM,), 3)
    matrix_free = MatrixFree(denoiser)
    for steps in (1, 3):
        guidance = MeasurementGuidance(denoiser, operator=operator, y=Y.new_zeros(3), noise=1.0, solver_steps=steps)
        noise, times = NoiseStream(0, range(2), (DIM,), dtype=torch.float64), torch.tensor([0.3, 1.0]).double()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            DDPMSampler(2).sample(denoiser, matrix_free, times, noise, guidance=guidance)
        found = [str(each.message) for each in said]
        assert len(found) == (steps == 1)
        assert all("solver_steps should be above 1 (got relative residuals of up to 0." in each for each in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.ones(3)}, r"y must have shape \(2,\)"),
        ({"noise": 0.0}, r"noise must be above 0, as A C A\^T may be singular \(got 0.0\)"),
        ({"noise": torch.ones(3)}, r"noise must be a number, or one for each value of y, \(2,\)"),
        ({"operator": Mask((5,), torch.tensor([1, 1, 0, 0, 0]))}, r"operator must act on the data's shape \(4,\)"),
        ({"estimate": "median"}, r"estimate must be one of sample, mean \(got 'median'\)"),
        ({"solver_steps": 0}, r"solver_steps must be at least 1 \(got 0\)"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeasurementGuidance(exact(), **{"operator": MASK, "y": Y, "noise": NOISE} | change)


@pytest.mark.parametrize("strategy", [BetaTilde, LearnedRange])
def test_strategies_without_a_covariance_are_refused(strategy: type[VarianceStrategy]) -> None:
    denoiser = Denoiser(exact().network, LINEAR).eval()
    made = strategy(denoiser, *[lambda *shapes: torch.nn.Identity()] * (strategy is LearnedRange))
    guidance = MeasurementGuidance(denoiser, operator=MASK, y=Y)
    with pytest.raises(ValueError, match=r"var must model Cov\[x_0\|x_t\] for guidance=measurement"):
        sample(denoiser, made, DDPMSampler(2), torch.tensor([0.5, 1.0]).double(), 2, guidance=guidance, progress=False)


def test_predictor_corrector_takes_it_too() -> None:
    denoiser = exact()
    guidance = MeasurementGuidance(denoiser, operator=MASK, y=Y, noise=1e-3)
    times, sampler = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), PredictorCorrectorSampler(3)
    x = sample(denoiser, Beta(denoiser), sampler, times, 3, guidance=guidance, progress=False)
    assert_close(MASK(x).double(), Y.expand(3, 2), rtol=0, atol=0.02)
