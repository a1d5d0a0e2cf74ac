"""Non-linear measurements: exact where the function is linear, and close to a posterior by brute force."""

import pytest
import torch
from test_conditioning import BATCH, EVENT, KINDS, normal
from torch import Tensor
from torch.testing import assert_close

import optcov
from optcov.covariance import Covariance, FullCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.inverse import LinearizedOperator, MatrixOperator, condition
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.schedule import LinearSchedule
from optcov.variance.base import Closed

DATA = GaussianMixture([[0.3, -0.1]], [[[0.2, 0.12], [0.12, 0.1]]])
NOISE = 0.1


@pytest.mark.parametrize("kind", ["diagonal", "low rank", "basis", "full", "matrix-free"])
def test_a_linear_function_is_conditioned_on_as_its_matrix(kind: str) -> None:
    linear = MatrixOperator(EVENT, normal(5, 16))
    tangent = LinearizedOperator(EVENT, linear).near(normal(BATCH, *EVENT))
    residual, variance = normal(BATCH, 5), torch.tensor(0.1, dtype=torch.float64)
    v = normal(BATCH, *EVENT)
    ours, theirs = (condition(KINDS[kind], residual, each, variance) for each in (tangent, linear))
    assert_close(ours.shift, theirs.shift, rtol=1e-9, atol=1e-9)
    assert_close(ours.covariance.matvec(v), theirs.covariance.matvec(v), rtol=1e-9, atol=1e-9)


def test_each_sample_has_its_own_jacobian() -> None:
    point, v = normal(BATCH, *EVENT), normal(BATCH, *EVENT)
    model = LinearizedOperator(EVENT, lambda x: (x**3).sum((1, 2)))
    tangent = model.near(point)
    assert tangent.measurement_shape == (4,)
    assert_close(tangent(v), (3 * point**2 * v).sum((1, 2)))
    rows = (3 * point**2)[:, 0, :, :, None] * torch.eye(4).double()  # of column j only pixels of column j
    assert_close(tangent.matrix(point), rows.flatten(1, 2).mT)
    assert_close(tangent.adjoint(v[:, 0, 0]), 3 * point**2 * v[:, :, :1])


class Exact(Closed):
    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        matrix = denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]
        return FullCovariance(matrix.float(), (2,))


def curved(x: Tensor) -> Tensor:
    """Monotone, with a slope from 0.6 to 1.8 over the data."""
    return x[:, :1] + 0.4 * x[:, :1] ** 2


def test_a_chain_is_close_to_a_posterior_by_brute_force() -> None:
    """The unmeasured coordinate learns by its correlation; the deviation of a line through 0 would be off by half."""
    schedule = LinearSchedule(1000)
    denoiser = Denoiser(OracleNetwork((2,), DATA, schedule), schedule).eval()
    one, axis = torch.ones((), dtype=torch.float64), torch.linspace(-2, 2, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for y in (0.8, -0.2):
        likelihood = -((y - curved(grid)[:, 0]) ** 2) / (2 * NOISE**2)
        density = (DATA.log_density(grid, one, 0 * one) + likelihood).softmax(0)[:, None]
        mean = (density * grid).sum(0)
        std = (density * (grid - mean) ** 2).sum(0).sqrt()
        found = optcov.restore(
            denoiser, Exact(denoiser), torch.tensor([y]), LinearizedOperator((2,), curved), NOISE, 500, 25,
            progress=False, clip_x0=False,
        )  # fmt: skip
        # the standard error of 500 samples is 0.004 of the measured coordinate and 0.008 of the other
        assert_close(found.mean.double(), mean, rtol=0, atol=0.03)
        assert_close(found.std.double(), std, rtol=0.15, atol=0)
