"""What deepinv's samplers are handed: against the exact score, and, where it is installed, in the library itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import Covariance, FullCovariance
from optcov.data_range import DataRange
from optcov.deepinv import ConditionedFidelity, MeanDenoiser
from optcov.denoiser import Denoiser, Prediction
from optcov.errors import ConfigError
from optcov.inverse import PairOperator
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.schedule import LinearSchedule
from optcov.variance.base import Closed
from optcov.variance.fixed import BetaTilde

EVENT, NOISE, ONE = (1, 4, 4), 0.05, torch.ones((), dtype=torch.float64)  # the noise is on [0, 1]
PLACE = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
UNIT = GaussianMixture(torch.linspace(0.4, 0.6, 16)[None], 0.01 * torch.exp(-torch.cdist(PLACE, PLACE) / 2)[None])
OWN = GaussianMixture(4 * UNIT.means - 2, 16 * UNIT.covariances)  # the same field in the network's unit, on [-2, 2]
SCHEDULE = LinearSchedule(1000)


class Network(nn.Module):
    """The exact mean."""

    data_shape, feature_channels = EVENT, 1

    def forward(self, x_t: Tensor, network_time: Tensor) -> tuple[Tensor, Tensor]:
        level = SCHEDULE.levels(network_time.double() / 1000)
        mean = OWN.posterior_mean(x_t.flatten(1), level.alpha, level.sigma).reshape(x_t.shape).to(x_t.dtype)
        return mean, mean


class Exact(Closed):
    """The exact C."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, x_t = prediction.level, prediction.x_t
        return FullCovariance(OWN.posterior(x_t.flatten(1), level.alpha, level.sigma)[1].to(x_t.dtype), EVENT)


def denoiser() -> Denoiser:
    return Denoiser(Network(), SCHEDULE, X0(), data_range=DataRange(-2.0, 2.0, None)).eval()


class Rows:
    """A ``LinearPhysics`` that measures every other row."""

    noise_model = SimpleNamespace(sigma=torch.tensor(NOISE))

    def A(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(len(y), *EVENT, dtype=y.dtype)
        x[:, :, ::2] = y
        return x


def test_the_mean_is_asked_in_the_network_s_own_unit():
    """``E[x_0|x]`` on [0, 1], with one noise for all images or one for each."""
    ours, x = MeanDenoiser(denoiser()), torch.randn(3, *EVENT, generator=torch.Generator().manual_seed(0))
    for sigma in (0.2, torch.tensor([0.05, 0.3, 7.0]).reshape(3, 1, 1, 1)):
        wanted = UNIT.posterior_mean(x.flatten(1), ONE, torch.as_tensor(sigma).flatten().expand(3))
        assert_close(ours(x, sigma).flatten(1), wanted.float(), rtol=1e-3, atol=1e-4)


def test_the_gradient_is_that_of_the_measurement_s_likelihood():
    """For Gaussian data ``p(y | x)`` is Gaussian, and autograd differentiates it."""
    network, generator = denoiser(), torch.Generator().manual_seed(1)
    x, y = torch.randn(2, *EVENT, generator=generator), torch.randn(2, 1, 2, 4, generator=generator)
    found = ConditionedFidelity(network, Exact(network)).grad(x, y, Rows(), torch.tensor(0.3))
    point = x.double().requires_grad_()
    mean, covariance = UNIT.posterior(point.flatten(1), ONE, 0.3 * ONE)
    matrix = PairOperator.of(EVENT, Rows()).matrix(mean)
    total = matrix @ covariance @ matrix.T + NOISE**2 * torch.eye(len(matrix), dtype=torch.float64)
    residual = y.double().flatten(1) - mean @ matrix.T
    loss = (residual * torch.linalg.solve(total, residual[..., None])[..., 0]).sum() / 2
    (wanted,) = torch.autograd.grad(loss, point)
    assert_close(found, wanted.float(), rtol=2e-3, atol=1e-3)


def test_refusals():
    network, x, y = denoiser(), torch.zeros(1, *EVENT), torch.zeros(1, 1, 2, 4)
    fidelity = ConditionedFidelity(network, Exact(network))
    with pytest.raises(ConfigError, match=r"^strategy must be a model of"):
        ConditionedFidelity(network, BetaTilde(network))
    with pytest.raises(ConfigError, match=r"^noise must be above 0 .got None.: give the physics"):
        fidelity.grad(x, y, SimpleNamespace(A=Rows().A, A_adjoint=Rows().A_adjoint), 0.3)
    with pytest.raises(ConfigError, match=r"^sigma must be at most 39.*, the network's largest .got 60.0.: start"):
        fidelity.grad(x, y, Rows(), 60.0)
    with pytest.raises(ConfigError, match=r"^data_range must be the same finite interval"):
        MeanDenoiser(Denoiser(network.network, network.schedule, data_range=DataRange(None, None)))


def physics_of(library, name: str):
    made = {
        "Inpainting": lambda: library.physics.Inpainting((1, 4, 4), mask=0.6),
        "Blur": lambda: library.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular"),
        "Downsampling": lambda: library.physics.Downsampling((1, 4, 4), filter=None, factor=2),
        "CompressedSensing": lambda: library.physics.CompressedSensing(m=5, img_size=(1, 4, 4)),
    }
    return made[name]()


@pytest.mark.parametrize("name", ["Inpainting", "Blur", "Downsampling", "CompressedSensing"])
def test_physics_of_the_library_are_operators(name: str):
    """Measured with deepinv 0.5.0."""
    physics = physics_of(pytest.importorskip("deepinv"), name)
    operator = PairOperator.of(EVENT, physics)
    x = torch.randn(2, *EVENT)
    assert_close(operator(x), physics.A(x))
    assert operator.matrix(x).shape == (operator.measurement_shape.numel(), 16)


def test_a_sampler_of_the_library_draws_from_the_posterior():
    """deepinv 0.5.0's ancestral sampler in 40 steps, against the exact posterior; its last step returns a mean."""
    library = pytest.importorskip("deepinv")
    network, physics = denoiser(), library.physics.Downsampling(EVENT, filter=None, factor=2)
    physics.noise_model = library.physics.GaussianNoise(NOISE)
    y = physics.A(UNIT.means.reshape(1, *EVENT).float() + 0.1)
    sde = library.sampling.VarianceExplodingDiffusion(sigma_min=0.005, sigma_max=30, alpha=1.0)
    solver = library.sampling.DDPMSolver(timesteps=torch.linspace(1, 0, 41), rng=torch.Generator())
    sampler = library.sampling.PosteriorDiffusion(
        ConditionedFidelity(network, Exact(network)), MeanDenoiser(network), sde, solver
    )
    samples = sampler(y.expand(400, -1, -1, -1), physics, seed=0).float().flatten(1)
    matrix = PairOperator.of(EVENT, physics).matrix(ONE)
    posterior = UNIT.measured(matrix, y.flatten(), NOISE)
    assert_close(samples.mean(0), posterior.mean().float(), rtol=0, atol=0.015)
    assert_close(samples.std(0), posterior.covariance().diagonal().sqrt().float(), rtol=0.25, atol=0)
