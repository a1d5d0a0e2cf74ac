"""A strategy of one's own is one small class; it may take gradients through the network while sampling is without.

Each of the three below has ``Cov[x_0|x_t] = (sigma_t^2 / alpha_t) dm/dx_t`` (Tweedie's second identity) on its
diagonal, so that samples and bound must be those of the closed form.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance
from optcov.likelihood import VariationalBound
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import Eps, Parameterization, Velocity
from optcov.sampler import DDIMSampler, DDPMSampler, NoiseStream, PredictorCorrectorSampler, Sampler
from optcov.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed

COUNT = 12


class ByVJP(Closed):
    """Row i of dm/dx_t is ``(dm/dx_t)^T e_i``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, unit = prediction.level, torch.eye(2, dtype=prediction.x_t.dtype)
        rows = [denoiser.vjp(prediction, e.expand_as(prediction.x_t))[:, i] for i, e in enumerate(unit)]
        return DiagonalCovariance(level.sigma**2 / level.alpha * torch.stack(rows, 1))


class ByJVP(Closed):
    """Column i of dm/dx_t is ``(dm/dx_t) e_i``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, unit = prediction.level, torch.eye(2, dtype=prediction.x_t.dtype)
        columns = [denoiser.jvp(prediction, e.expand_as(prediction.x_t))[:, i] for i, e in enumerate(unit)]
        return DiagonalCovariance(level.sigma**2 / level.alpha * torch.stack(columns, 1))


class ByAutograd(Closed):
    """Gradients turned on, and taken through a call of the denoiser."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, x_t = prediction.level, prediction.x_t.detach().requires_grad_()
        with torch.enable_grad():
            x0 = denoiser(x_t, level, prediction.condition).x0
            rows = [torch.autograd.grad(x0[:, i].sum(), x_t, retain_graph=True)[0][:, i] for i in range(2)]
        return DiagonalCovariance(level.sigma**2 / level.alpha * torch.stack(rows, 1))


class Exact(Closed):
    """The closed form."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, mixture = prediction.level, denoiser.network.mixture
        exact = mixture.posterior(prediction.x_t, level.alpha, level.sigma, prediction.condition)[1]
        return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))


strategies = pytest.mark.parametrize("strategy", [ByVJP, ByJVP, ByAutograd])
# times at which there is signal: (sigma^2 / alpha) dm/dx_t is 0 / 0 without
PATHS = [(CosineSchedule(100), Eps), (FlowSchedule(100), Velocity), (VESchedule(100, 0.02, 4.0), Eps)]
paths = pytest.mark.parametrize(("schedule", "parameterization"), PATHS, ids=["vp", "flow", "ve"])
TIMES = EvenTrajectory().times(CosineSchedule(99), 5) * 0.99


def oracle(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization], classes: bool = False
) -> Denoiser:
    num_classes = len(mixture.weights) if classes else None
    network = OracleNetwork(
        (2,), mixture, schedule, num_classes=num_classes, parameterization=parameterization(), num_features=1
    )
    return Denoiser(network, schedule, parameterization()).eval()


def noise() -> NoiseStream:
    return NoiseStream(0, range(COUNT), (2,), dtype=torch.float64)


SAMPLERS = [DDPMSampler(5), DDIMSampler(5), DDIMSampler(5, eta=0.5), PredictorCorrectorSampler(5)]


@strategies
@paths
@pytest.mark.parametrize("sampler", SAMPLERS, ids=["ddpm", "ddim", "eta", "pc"])
def test_samples_are_those_of_the_closed_form(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    parameterization: type[Parameterization],
    strategy: type[Closed],
    sampler: Sampler,
):
    denoiser = oracle(mixture, schedule, parameterization)
    found, expected = (sampler.sample(denoiser, kind(denoiser), TIMES, noise()) for kind in (strategy, Exact))
    assert not found.requires_grad
    # dm/dx_t is as small as alpha / sigma^2 times C, in sums of numbers near 1
    assert_close(found, expected, rtol=1e-6, atol=1e-7)


@strategies
def test_guided_samples_ask_for_the_labels_in_question(mixture: GaussianMixture, strategy: type[Closed]):
    denoiser = oracle(mixture, *PATHS[0], classes=True)
    guidance, labels = ClassifierFreeGuidance(denoiser, 3, 2.0), torch.arange(COUNT) % 3
    found, expected = (
        DDPMSampler(5).sample(denoiser, kind(denoiser), TIMES, noise(), guidance=guidance, condition=labels)
        for kind in (strategy, Exact)
    )
    assert_close(found, expected, rtol=1e-6, atol=1e-7)


@strategies
@paths
def test_the_bound_is_that_of_the_closed_form(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    parameterization: type[Parameterization],
    strategy: type[Closed],
):
    denoiser = oracle(mixture, schedule, parameterization)
    x_0 = mixture.sample(COUNT, torch.Generator().manual_seed(1))
    found, expected = (
        VariationalBound(denoiser, kind(denoiser)).terms(x_0, TIMES, noise()) for kind in (strategy, Exact)
    )
    assert not found.requires_grad
    assert_close(found, expected, rtol=1e-6, atol=1e-7)


@strategies
def test_it_works_in_the_precision_of_images(mixture: GaussianMixture, strategy: type[Closed]):
    denoiser = oracle(mixture, *PATHS[0])
    level = denoiser.levels(torch.tensor(0.5, dtype=torch.float64))
    x_t: Tensor = torch.linspace(-1, 1, 10).reshape(5, 2)
    with torch.no_grad():
        found, expected = (
            kind(denoiser).bounded_covariance(denoiser, denoiser(x_t, level)).diagonal() for kind in (strategy, Exact)
        )
    assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-5)
