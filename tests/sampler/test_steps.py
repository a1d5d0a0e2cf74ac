"""The one loop: what each state tells, whose gradients are on, labels and guidance, and one stream of noise."""

import pytest
import torch
from scripted import Exact, Scripted, white
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance
from optcov.covariance.base import Noise
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance
from optcov.model import SimpleHead
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDIMSampler, DDPMSampler, HeunSampler, NoiseStream, UniPCSampler, sample
from optcov.schedule import CosineSchedule, LinearSchedule
from optcov.schedule.levels import per_sample
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

SCHEDULE = LinearSchedule(100)
TIMES = EvenTrajectory().times(SCHEDULE, 5)


@pytest.fixture(scope="module")
def denoiser(mixture: GaussianMixture, make_oracle) -> Denoiser:
    return make_oracle(mixture, SCHEDULE)


@pytest.fixture(scope="module")
def labelled(mixture: GaussianMixture) -> Denoiser:
    """One that knows the three components as classes."""
    return Denoiser(OracleNetwork((2,), mixture, SCHEDULE, num_classes=3), SCHEDULE).eval()


@pytest.mark.parametrize("sampler", [DDPMSampler(5), UniPCSampler(5), HeunSampler(5)])
def test_a_state_is_what_was_asked_and_what_came_of_it(denoiser: Denoiser, sampler):
    draws = white(6, 4, 2)
    states = list(sampler.steps(denoiser, BetaTilde(denoiser), TIMES, Scripted(draws)))
    assert [state.i for state in states] == list(range(1, sampler.num_updates(SCHEDULE, TIMES) + 1))
    answers = [state.prediction for state in states]
    assert torch.equal(answers[0].x_t, draws[0])
    for before, answer in zip(states, answers[1:], strict=False):
        assert torch.equal(answer.x_t, before.x)
    asked = [answer.level.t.item() for answer in answers]
    assert asked[0] == TIMES[-1]
    assert asked == sorted(asked, reverse=True)
    assert sorted(set(asked)) == TIMES.tolist()
    for answer in answers:
        assert_close(answer.x0, denoiser(answer.x_t, answer.level).x0, rtol=1e-12, atol=1e-12)
    assert torch.equal(states[-1].x, sampler.sample(denoiser, BetaTilde(denoiser), TIMES, Scripted(draws)))


def test_no_times_are_refused(denoiser: Denoiser):
    with pytest.raises(ValueError, match=r"^times must hold at least one time \(got none\): "):
        DDIMSampler(5).sample(denoiser, BetaTilde(denoiser), TIMES[:0], Scripted(white(1, 4, 2)))


class Tweedie(Closed):
    """``C = (sigma^2 / alpha) dm/dx_t``, a backward pass for each row."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        assert not torch.is_grad_enabled()
        one = torch.ones_like(prediction.x_t[:, 0])
        rows = [
            denoiser.vjp(prediction, torch.nn.functional.pad(one[:, None], (i, prediction.x_t.shape[1] - 1 - i)))
            for i in range(prediction.x_t.shape[1])
        ]
        matrix = prediction.level.sigma**2 / prediction.level.alpha * torch.stack(rows, 1)
        return FullCovariance((matrix + matrix.mT) / 2, prediction.x_t.shape[1:])


class ExactFull(Exact):
    """The oracle's exact C, whole."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        exact = denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]
        return FullCovariance(exact, prediction.x_t.shape[1:])


def test_a_strategy_takes_gradients_while_those_of_the_loop_are_off(denoiser: Denoiser):
    """And counts: a prediction in each of 5 steps, and 2 rows of the Jacobian in those that add noise."""
    draws = white(6, 4, 2)
    with torch.no_grad():
        expected = DDPMSampler(5).sample(denoiser, ExactFull(denoiser), TIMES, Scripted(draws))
        denoiser.cost.reset()
        found = DDPMSampler(5).sample(denoiser, Tweedie(denoiser), TIMES, Scripted(draws))
    assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert (denoiser.cost.nfe, denoiser.cost.ne) == (4 * (5 + 2 * 4), 4 * (5 + 3 * 2 * 4))


def test_who_watches_keeps_gradients(denoiser: Denoiser):
    """The loop's are off inside of it alone; what it yields belongs to no graph, and can be trained on."""
    start = white(1, 4, 2)[0].requires_grad_()
    states = DDPMSampler(5).steps(denoiser, Tweedie(denoiser), TIMES, Scripted(white(5, 4, 2)), start=start)
    for state in states:
        assert torch.is_grad_enabled()
        assert not state.x.requires_grad
        assert not state.x.is_inference()
    assert torch.is_grad_enabled()


def test_a_condition_goes_to_the_network(mixture: GaussianMixture, labelled: Denoiser, make_oracle):
    """The samples of each class are those of a denoiser that knows its component alone."""
    labels = torch.tensor([2, 0, 1, 2])
    draws = white(6, 4, 2)
    states = list(DDIMSampler(5).steps(labelled, BetaTilde(labelled), TIMES, Scripted(draws), condition=labels))
    assert all(torch.equal(state.prediction.condition, labels) for state in states)
    for row, label in enumerate(labels):
        alone = GaussianMixture(mixture.means[label, None], mixture.covariances[label, None])
        one = make_oracle(alone, SCHEDULE)
        expected = DDIMSampler(5).sample(one, BetaTilde(one), TIMES, Scripted(draws[:, row, None]))
        assert_close(states[-1].x[row, None], expected, rtol=1e-9, atol=1e-9)


def test_no_condition_is_the_null_label(labelled: Denoiser, denoiser: Denoiser):
    draws = white(6, 4, 2)
    without, unconditional = (
        DDIMSampler(5).sample(each, BetaTilde(each), TIMES, Scripted(draws)) for each in (labelled, denoiser)
    )
    assert_close(without, unconditional, rtol=1e-12, atol=1e-12)


def test_guidance_is_asked_at_each_step(labelled: Denoiser):
    labels, draws = torch.tensor([2, 0, 1, 2]), white(6, 4, 2)
    guidance = ClassifierFreeGuidance(labelled, 3, weight=3.0)
    labelled.cost.reset()
    states = list(
        DDIMSampler(5).steps(labelled, BetaTilde(labelled), TIMES, Scripted(draws), guidance=guidance, condition=labels)
    )
    assert labelled.cost.nfe == 2 * 5 * 4
    for state in states:
        asked = state.prediction
        null, wanted = (labelled(asked.x_t, asked.level, y) for y in (torch.full((4,), 3), labels))
        assert_close(asked.x0, null.x0 + 3 * (wanted.x0 - null.x0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [2, 4])
def test_labels_and_samples_are_as_many(labelled: Denoiser, count: int):
    with pytest.raises(ValueError, match=rf"^labels must be one for each of 3 samples \(got {count}\): "):
        sample(labelled, BetaTilde(labelled), DDIMSampler(5), TIMES, 3, labels=torch.zeros(count).long())


def test_guidance_wants_labels(labelled: Denoiser):
    guidance = ClassifierFreeGuidance(labelled, 3, weight=3.0)
    with pytest.raises(ValueError, match=r"^labels must be given with guidance \(got None\): "):
        sample(labelled, BetaTilde(labelled), DDIMSampler(5), TIMES, 3, guidance=guidance)


class Recorded(NoiseStream):
    """Remembers its draws."""

    def __init__(self, count: int) -> None:
        super().__init__(0, range(count), (2,), dtype=torch.float64)
        self.draws: list[Tensor] = []

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        self.draws.append(super().draw(shape))
        return self.draws[-1]


def analytic(denoiser: Denoiser) -> VarianceStrategy:
    strategy = Analytic(denoiser)
    strategy.calibrate(denoiser, [torch.rand(8, 2, dtype=torch.float64)])
    return strategy


STRATEGIES = {
    "beta_tilde": BetaTilde,
    "beta": Beta,
    "analytic": analytic,
    **{kind.__name__: (lambda d, kind=kind: kind(d, SimpleHead).double()) for kind in (NPR, SN, LearnedRange)},
    "diagonal": Exact,
    "full": ExactFull,
    "tweedie": Tweedie,
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_take_the_same_noise(denoiser: Denoiser, name: str):
    """One draw to start from and one a step, none in the last: what differs between strategies is the covariance."""
    noise, reference = Recorded(4), NoiseStream(0, range(4), (2,), dtype=torch.float64)
    DDPMSampler(5).sample(denoiser, STRATEGIES[name](denoiser), TIMES, noise)
    assert len(noise.draws) == 5
    assert all(torch.equal(drawn, reference.draw()) for drawn in noise.draws)


class LowRank(DiagonalCovariance):
    """``diag(variance) + U U^T``, U ``[B, d, k]``, as far as a step asks for it."""

    def __init__(self, variance: Tensor, factor: Tensor) -> None:
        super().__init__(variance)
        self.factor = factor

    def affine(self, scale: Tensor, shift: Tensor) -> DiagonalCovariance:
        scaled = per_sample(scale.sqrt(), self.factor) * self.factor
        return LowRank(super().affine(scale, shift).variance, scaled)

    def bounded(self, high: float | Tensor | None) -> DiagonalCovariance:
        return LowRank(super().bounded(high).variance, self.factor)

    def draw(self, noise: Noise) -> Tensor:
        return super().draw(noise) + (self.factor @ noise.draw(self.factor.shape[2:])[..., None])[..., 0]


class Correlated(Closed):
    """A covariance of rank 3 above a small diagonal."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t = prediction.x_t
        return LowRank(torch.full_like(x_t, 0.01), 0.1 * torch.stack([x_t, x_t.sin(), x_t.cos()], 2))


def test_a_covariance_that_draws_more_numbers_is_independent_of_the_batch_size():
    class Elementwise(torch.nn.Module):
        data_shape, feature_channels = (2,), 2

        def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return 0.5 * x_t.tanh(), x_t

    denoiser = Denoiser(Elementwise(), CosineSchedule(30))
    times = EvenTrajectory().times(denoiser.schedule, 4)
    whole, *others = (
        sample(denoiser, Correlated(denoiser), DDPMSampler(4), times, 7, batch_size=size, progress=False)
        for size in (7, 1, 3)
    )
    for other in others:
        assert_close(other, whole, rtol=1e-6, atol=1e-6)  # the product of a matrix and a vector, in other batches
    plain = sample(denoiser, BetaTilde(denoiser), DDPMSampler(4), times, 7, progress=False)
    assert (whole - plain).abs().max() > 0.01
