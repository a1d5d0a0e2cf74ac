"""Network evaluations are counted where they happen: by the denoiser, in rows (samples times evaluations)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import Covariance, FullCovariance, IsotropicCovariance
from optcov.denoiser import Cost, Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance
from optcov.likelihood import ProbabilityFlow, VariationalBound
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0
from optcov.sampler import (
    DDIMSampler,
    DDPMSampler,
    EulerSampler,
    HeunSampler,
    NoiseStream,
    PredictorCorrectorSampler,
    Sampler,
    sample,
)
from optcov.schedule import FlowSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed
from optcov.variance.fixed import BetaTilde

SCHEDULE = LinearSchedule(1000)
COUNT = 6


class Counted(OracleNetwork):
    """Counts the rows it is asked about itself."""

    rows = 0

    def forward(self, x_t: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        self.rows += len(x_t)
        return super().forward(x_t, *arguments)


def make_denoiser(mixture: GaussianMixture, classes: bool = False) -> Denoiser:
    network = Counted((2,), mixture, SCHEDULE, num_classes=len(mixture.weights) if classes else None)
    return Denoiser(network, SCHEDULE).eval()


def times(num_steps: int) -> Tensor:
    return EvenTrajectory().times(SCHEDULE, num_steps)


def noise(count: int = COUNT) -> NoiseStream:
    return NoiseStream(0, range(count), (2,), dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda k: DDIMSampler(k), lambda k: k),
        (lambda k: DDPMSampler(k), lambda k: k),
        (lambda k: EulerSampler(k), lambda k: k),
        (lambda k: HeunSampler(k), lambda k: 2 * k - 1),
    ],
    ids=["ddim", "ddpm", "euler", "heun"],
)
def test_a_sampler_costs_its_calls_for_each_sample(
    mixture: GaussianMixture, make: Callable[[int], Sampler], calls: Callable[[int], int], num_steps: int
):
    denoiser = make_denoiser(mixture)
    make(num_steps).sample(denoiser, BetaTilde(denoiser), times(num_steps), noise())
    assert denoiser.cost.nfe == denoiser.cost.ne == COUNT * calls(num_steps)
    assert denoiser.network.rows == COUNT * calls(num_steps)


def test_counts_add_up_until_they_are_reset(mixture: GaussianMixture):
    denoiser = make_denoiser(mixture)
    assert (denoiser.cost.nfe, denoiser.cost.ne) == (0, 0)
    for runs in (1, 2):
        DDIMSampler(5).sample(denoiser, BetaTilde(denoiser), times(5), noise())
        assert denoiser.cost.nfe == 5 * COUNT * runs
    denoiser.cost.reset()
    assert (denoiser.cost.nfe, denoiser.cost.ne) == (0, 0)


@pytest.mark.parametrize(("weight", "each"), [(0.0, 1), (1.0, 1), (3.0, 2)])
def test_guidance_that_mixes_two_answers_costs_two(mixture: GaussianMixture, weight: float, each: int):
    denoiser = make_denoiser(mixture, classes=True)
    guidance = ClassifierFreeGuidance(denoiser, 3, weight)
    labels = torch.arange(COUNT) % 3
    DDIMSampler(5).sample(denoiser, BetaTilde(denoiser), times(5), noise(), guidance=guidance, condition=labels)
    assert denoiser.cost.nfe == denoiser.cost.ne == 5 * COUNT * each
    assert denoiser.network.rows == 5 * COUNT * each


class Logits(nn.Module):
    """A classifier that prefers nothing, and counts the rows it is asked about."""

    def __init__(self, data_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        self.rows += len(x_t)
        return 0 * x_t[:, :1].expand(-1, 3)


@pytest.mark.parametrize(
    ("schedule", "sampler", "calls"),
    [
        (SCHEDULE, DDIMSampler(5), 5),
        (SCHEDULE, HeunSampler(5), 9),
        (FlowSchedule(1000), HeunSampler(5), 8),  # its first step is Euler's, from where no signal is left
        (SCHEDULE, PredictorCorrectorSampler(5, corrector_steps=2), 13),  # no corrections after the last step
    ],
    ids=["ddim", "heun", "heun-flow", "predictor_corrector"],
)
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_classifier_is_counted_beside_the_network(
    mixture: GaussianMixture, schedule: NoiseSchedule, sampler: Sampler, calls: int, weight: float
):
    denoiser = Denoiser(Counted((2,), mixture, schedule, parameterization=X0()), schedule, X0()).eval()
    guidance = ClassifierGuidance(denoiser, 3, Logits, weight)
    before = replace(denoiser.cost)
    sampler.sample(
        denoiser,
        BetaTilde(denoiser),
        EvenTrajectory().times(schedule, 5),
        noise(),
        guidance=guidance,
        condition=torch.arange(COUNT) % 3,
    )
    asked = calls if weight else 0
    assert denoiser.cost.since(before) == Cost(calls * COUNT, calls * COUNT, asked * COUNT)
    assert (denoiser.network.rows, guidance.classifier.rows) == (calls * COUNT, asked * COUNT)
    denoiser.cost.reset()
    assert denoiser.cost == Cost()


def scalar(value: Tensor, x_t: Tensor) -> Covariance:
    return IsotropicCovariance(value.double().clamp(min=0), x_t.shape[1:])


class Forward(Closed):
    """C from one more evaluation, a little further out."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t = prediction.x_t
        further = denoiser(1.01 * x_t, prediction.level)
        return scalar(((further.x0 - prediction.x0) ** 2).sum(1), x_t)


class Tangent(Closed):
    """C from one Jacobian-vector product, ``v^T (dm/dx) v``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        v = torch.ones_like(prediction.x_t)
        return scalar((v * denoiser.jvp(prediction, v)).mean(1), prediction.x_t)


class Cotangent(Closed):
    """C from one vector-Jacobian product, ``v^T (dm/dx) v``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        v = torch.ones_like(prediction.x_t)
        return scalar((v * denoiser.vjp(prediction, v)).mean(1), prediction.x_t)


@pytest.mark.parametrize(
    ("strategy", "nfe", "ne"), [(Forward, 1, 1), (Tangent, 1, 2), (Cotangent, 1, 3)], ids=["forward", "jvp", "vjp"]
)
def test_what_a_strategy_asks_is_counted(mixture: GaussianMixture, strategy: type[Closed], nfe: int, ne: int):
    """In four of five steps: the last one, to 0, adds no noise.  A product repeats the evaluation that it needs."""
    denoiser = make_denoiser(mixture)
    DDIMSampler(5).sample(denoiser, strategy(denoiser), times(5), noise())
    assert denoiser.cost.nfe == COUNT * (5 + 4 * nfe)
    assert denoiser.cost.ne == COUNT * (5 + 4 * ne)
    assert denoiser.network.rows == denoiser.cost.nfe


class Jacobian(Closed):
    """``C = (sigma^2 / alpha) dm/dx`` row by row, by autograd of the denoiser it is given."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        with torch.enable_grad():
            x_t = prediction.x_t.detach().clone().requires_grad_()
            x0 = denoiser(x_t, level, prediction.condition).x0
            rows = [torch.autograd.grad(x0[:, i].sum(), x_t, retain_graph=True)[0] for i in range(x_t.shape[1])]
        return FullCovariance(level.sigma**2 / level.alpha * torch.stack(rows, 1), x_t.shape[1:])


class Exact(Closed):
    """The closed form of the same matrix."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t, level = prediction.x_t, prediction.level
        exact = denoiser.network.mixture.posterior(x_t, level.alpha, level.sigma, prediction.condition)[1]
        return FullCovariance(exact, x_t.shape[1:])


@pytest.mark.parametrize("sampler", [DDPMSampler(5), DDIMSampler(5)], ids=["ddpm", "ddim"])
def test_a_strategy_may_take_gradients_while_sampling(mixture: GaussianMixture, sampler: Sampler):
    """Tweedie's second identity: samples are those of the exact C."""
    denoiser = make_denoiser(mixture)
    with torch.no_grad():
        found, exact = (
            sampler.sample(denoiser, strategy(denoiser), times(5), noise()) for strategy in (Jacobian, Exact)
        )
    assert not found.requires_grad
    # dm/dx at t = 1 is 1e-5 of differences of numbers near 1
    assert_close(found, exact, rtol=1e-6, atol=1e-7)


def test_the_network_may_have_parameters_that_train(mixture: GaussianMixture):
    """Samples carry no graph, whatever a strategy turned on."""
    denoiser = make_denoiser(mixture)
    denoiser.network.unused = nn.Parameter(torch.ones(1))
    x_0 = DDIMSampler(5).sample(denoiser, Jacobian(denoiser), times(5), noise())
    assert not x_0.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("strategy", [Exact, Forward, Jacobian])
def test_batches_change_neither_samples_nor_counts(mixture: GaussianMixture, strategy: type[Closed]):
    """Counts are of what was evaluated: a last batch is filled up, here 7 samples to 9, so that all have one size."""
    samples, counts = [], []
    for batch_size, drawn in ((7, 7), (3, 9)):
        denoiser = make_denoiser(mixture)
        found = sample(denoiser, strategy(denoiser), DDPMSampler(5), times(5), 7, batch_size=batch_size, progress=False)
        samples.append(found.double())
        assert denoiser.cost.nfe == denoiser.network.rows
        counts.append((denoiser.cost.nfe / drawn, denoiser.cost.ne / drawn))
    assert counts[0] == counts[1] == ((5.0, 5.0) if strategy is Exact else (9.0, 9.0))
    assert_close(samples[0], samples[1], rtol=1e-4, atol=1e-5)  # float32, in products of other sizes


def test_evaluations_of_the_likelihood_are_counted(mixture: GaussianMixture):
    """One evaluation a term, and in the ODE a backward pass beside each."""
    denoiser, x_0 = make_denoiser(mixture), mixture.sample(COUNT)
    VariationalBound(denoiser, BetaTilde(denoiser)).terms(x_0, times(4), noise())
    assert denoiser.cost.nfe == denoiser.cost.ne == denoiser.network.rows == 4 * COUNT
    denoiser.cost.reset()
    denoiser.network.rows = 0
    calls = ProbabilityFlow(denoiser, tolerance=1e-2).solve(x_0, torch.ones_like(x_0)).calls
    assert denoiser.cost.nfe == denoiser.network.rows == calls * COUNT
    assert denoiser.cost.ne == 3 * calls * COUNT
