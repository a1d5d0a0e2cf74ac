"""Guidance against the closed form of a mixture whose components are the classes: means, covariances, limits."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance, GuidedPrediction
from optcov.kernel import ReverseKernel
from optcov.labels import cycle_labels
from optcov.model import Classifier, SimpleHead
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, V, Velocity
from optcov.sampler import DDPMSampler, sample
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseLevels, NoiseSchedule, VESchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Closed, TrainedHead, VarianceStrategy
from optcov.variance.fixed import BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

SCHEDULE = LinearSchedule(1000)
LEVELS = [SCHEDULE.levels(torch.tensor(n / 1000, dtype=torch.float64)) for n in (1, 100, 300, 1000)]
STEP = ReverseKernel.from_levels(LEVELS[1], LEVELS[2])  # from LEVELS[2], where most tests ask
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"n={level.t.item() * 1000:.0f}")
WEIGHTS = [-0.5, 0.4, 3.0]


class Oracle(Closed):
    """The diagonal of the exact Cov[x_0 | x_t], or of Cov[x_0 | x_t, y]."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, mixture = prediction.level, denoiser.network.mixture
        exact = mixture.posterior(prediction.x_t, level.alpha, level.sigma, prediction.condition)[1]
        return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))


class Bayes(nn.Module):
    """The exact classifier, ``log p(y|x_t)``."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule, *shapes: object) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x_t: Tensor, network_time: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(network_time / 1000), self.schedule.sigma(network_time / 1000)
        joint = [
            weight.log() + GaussianMixture(mean[None], covariance[None]).log_density(x_t, alpha, sigma)
            for weight, mean, covariance in zip(
                self.mixture.weights, self.mixture.means, self.mixture.covariances, strict=True
            )
        ]
        return torch.stack(joint, 1)


def oracle(
    mixture: GaussianMixture,
    schedule: NoiseSchedule = SCHEDULE,
    classes: bool = True,
    parameterization: type[Parameterization] = Eps,
) -> Denoiser:
    count = len(mixture.weights) if classes else None
    network = OracleNetwork((mixture.dim,), mixture, schedule, num_classes=count, parameterization=parameterization())
    network.feature_channels = 8  # of 256, whose cosines take half of the time
    network.frequencies, network.phases = network.frequencies[:, :8], network.phases[:8]
    return Denoiser(network, schedule, parameterization()).eval()


def noisy(mixture: GaussianMixture, level: NoiseLevels, count: int = 24) -> tuple[Tensor, Tensor]:
    """x_t, further out than data are, and labels that have nothing to do with it."""
    g = torch.Generator().manual_seed(7)
    x_0, eps = mixture.sample(count, g), torch.randn(count, mixture.dim, dtype=torch.float64, generator=g)
    x_t = level.alpha * x_0 + (0.2 + level.sigma) * eps
    return x_t, torch.arange(count) % len(mixture.weights)


def answers(
    guidance: Guidance, denoiser: Denoiser, strategy: VarianceStrategy, x_t: Tensor, level: NoiseLevels, labels: Tensor
) -> tuple[Prediction, Tensor, Tensor]:
    """A guided prediction, the diagonal of its C (bounded), and that of the step from LEVELS[2] to LEVELS[1]."""
    prediction = guidance.predict(denoiser, strategy, x_t, level, labels)
    covariance = guidance.covariance(STEP, denoiser, strategy, prediction).diagonal()
    return prediction, covariance, guidance.transition(STEP, denoiser, strategy, prediction).diagonal()


def component(mixture: GaussianMixture, label: Tensor) -> GaussianMixture:
    return GaussianMixture(mixture.means[label][None], mixture.covariances[label][None])


@levels
def test_the_labelled_oracle_is_that_of_each_component(mixture: GaussianMixture, level: NoiseLevels):
    x_t, labels = noisy(mixture, level)
    denoiser = oracle(mixture)
    found = denoiser(x_t, level, labels)
    for x, label, eps in zip(x_t, labels, found.eps, strict=True):
        assert_close(eps, oracle(component(mixture, label))(x[None], level).eps[0], rtol=1e-10, atol=1e-10)
    null = torch.full_like(labels, 3)
    plain = oracle(mixture, classes=False)(x_t, level)
    assert plain.condition is None
    for unlabelled in (denoiser(x_t, level), denoiser(x_t, level, null)):
        assert torch.equal(unlabelled.eps, plain.eps)
        assert torch.equal(unlabelled.condition, null)


@levels
@pytest.mark.parametrize("weight", WEIGHTS)
def test_classifier_free_mean_and_covariance_are_those_of_the_guided_density(
    mixture: GaussianMixture, weight: float, level: NoiseLevels
):
    """e = -sigma grad log(q_u^{1-w} q_c^w), by autograd of the densities; C = r (I - sigma de/dx), by that of e."""
    x_t, labels = noisy(mixture, level, count=9)
    alpha, sigma = level.alpha, level.sigma
    raw = oracle(mixture)
    prediction, covariance, _ = answers(ClassifierFreeGuidance(raw, 3, weight), raw, Oracle(raw), x_t, level, labels)
    assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-9, atol=1e-9)
    assert isinstance(prediction, GuidedPrediction)
    low, high = (Oracle(raw).covariance(raw, own) for own in (prediction.start, prediction.end))
    mixed = low.lerp(high, prediction.weight).diagonal()
    for i, label in enumerate(labels):

        def log_density(x: Tensor, label: Tensor = label) -> Tensor:
            of_class = component(mixture, label).log_density(x[None], alpha, sigma)
            return ((1 - weight) * mixture.log_density(x[None], alpha, sigma) + weight * of_class).sum()

        score = torch.autograd.functional.jacobian(log_density, x_t[i])
        assert_close(prediction.eps[i], -sigma * score, rtol=1e-7, atol=1e-9)
        slope = (sigma**2 / alpha**2) * (1 + sigma**2 * hessian(log_density, x_t[i]).diagonal())
        # r (1 - sigma de/dx) cancels to the size of r's rounding where r is large
        assert_close(mixed[i], slope, rtol=1e-6, atol=1e-11 * float(1 + sigma**4 / alpha**2))
    assert_close(covariance, mixed.clamp(0, 1), rtol=0, atol=0)


def test_weights_one_and_zero_are_the_conditional_and_the_unconditional_model_from_one_call(mixture: GaussianMixture):
    sizes: list[int] = []
    raw = oracle(mixture)
    raw.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    level, strategy = LEVELS[2], Oracle(raw)
    x_t, labels = noisy(mixture, level)
    for weight, given in ((1.0, labels), (0.0, None)):
        sizes.clear()
        raw.cost.reset()
        prediction, _, found = answers(ClassifierFreeGuidance(raw, 3, weight), raw, strategy, x_t, level, labels)
        assert sizes == [24]
        assert raw.cost.nfe == 24
        plain = raw(x_t, level, given)
        assert torch.equal(prediction.eps, plain.eps)
        assert torch.equal(prediction.x0, plain.x0)
        assert torch.equal(found, strategy.transition(STEP, raw, plain).diagonal())
    sizes.clear()
    raw.cost.reset()
    answers(ClassifierFreeGuidance(raw, 3, 2.0), raw, strategy, x_t, level, labels)
    assert sizes == [48]
    assert raw.cost.nfe == 48


def test_times_may_differ_within_a_batch(mixture: GaussianMixture):
    raw, (x_t, labels) = oracle(mixture), noisy(mixture, LEVELS[1])
    guidance, strategy = ClassifierFreeGuidance(raw, 3, 3.0), Oracle(raw)
    each = SCHEDULE.levels(torch.linspace(0.1, 1, 24, dtype=torch.float64))
    together, covariance, _ = answers(guidance, raw, strategy, x_t, each, labels)
    for i in (0, 11, 23):
        one = slice(i, i + 1)
        alone, of_one, _ = answers(guidance, raw, strategy, x_t[one], each[i], labels[one])
        assert_close(together.eps[i], alone.eps[0], rtol=1e-10, atol=1e-12)
        assert_close(covariance[i], of_one[0], rtol=1e-9, atol=1e-12)


# V is defined on variance-preserving paths, and Eps says nothing of x_0 at a flow's end
PATHS = [
    *[(SCHEDULE, kind) for kind in (X0, V, Velocity, EDM)],
    *[(FlowSchedule(1000), kind) for kind in (X0, Velocity, EDM)],
    *[(VESchedule(1000, 0.01, 5.0), kind) for kind in (Eps, X0, Velocity, EDM)],
]


@pytest.mark.parametrize(
    ("schedule", "parameterization"), PATHS, ids=[f"{type(path).__name__}-{kind.__name__}" for path, kind in PATHS]
)
@pytest.mark.parametrize("n", [1, 400, 1000])
def test_guidance_is_the_same_whatever_the_network_predicts_and_on_every_path(
    mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: type[Parameterization], n: int
):
    """m_u + w (m_c - m_u), e in proportion, f what goes with both, and C_u + w (C_c - C_u) within its bounds."""
    level = schedule.levels(torch.tensor(n / 1000, dtype=torch.float64))
    raw, (x_t, labels) = oracle(mixture, schedule, parameterization=parameterization), noisy(mixture, level)
    (m_u, c_u), (m_c, c_c) = (mixture.posterior(x_t, level.alpha, level.sigma, y) for y in (None, labels))
    wanted = m_u + 1.7 * (m_c - m_u)
    found, covariance, _ = answers(ClassifierFreeGuidance(raw, 3, 1.7), raw, Oracle(raw), x_t, level, labels)
    eps = (x_t - level.alpha * wanted) / level.sigma
    # x_0 is a hundredth of its amplified noise at n = 1, and a quarter of its rounding at n = 1000 of the linear path
    assert_close(found.x0, wanted, rtol=1e-8, atol=1e-8)
    assert_close(found.eps, eps, rtol=1e-6, atol=1e-8)
    assert_close(found.output, raw.parameterization.target(wanted, eps, level), rtol=1e-6, atol=1e-6)
    diagonal = (c_u + 1.7 * (c_c - c_u)).diagonal(dim1=1, dim2=2)
    assert_close(covariance, diagonal.clamp(0, 1), rtol=1e-9, atol=1e-12)


def guided_step(mixture: GaussianMixture, strategy: type[Closed]) -> tuple[Tensor, Tensor]:
    """The diagonals of C and of the step, of a strategy guided at w = 3."""
    raw, (x_t, labels) = oracle(mixture), noisy(mixture, LEVELS[2])
    return answers(ClassifierFreeGuidance(raw, 3, 3.0), raw, strategy(raw), x_t, LEVELS[2], labels)[1:]


def test_a_guided_step_has_the_guided_covariance_within_the_bounds_of_data(mixture: GaussianMixture):
    x_t, labels = noisy(mixture, LEVELS[2])
    low, high = (
        mixture.posterior(x_t, LEVELS[2].alpha, LEVELS[2].sigma, y)[1].diagonal(dim1=1, dim2=2) for y in (None, labels)
    )
    mixed = low + 3 * (high - low)
    assert mixed.lt(0).any(), "the bound at 0 is not tried"
    assert mixed.gt(0).any()
    covariance, found = guided_step(mixture, Oracle)
    assert_close(covariance, mixed.clamp(0, 1), rtol=1e-9, atol=1e-12)
    assert_close(found, STEP.lambda_sq + STEP.c**2 * mixed.clamp(0, 1), rtol=1e-10, atol=1e-14)


class Astray(Closed):
    """An estimate that leaves [0, 1] for the null label alone."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        variance = torch.where(prediction.condition == 3, -0.1, 0.2).double()
        return DiagonalCovariance(variance[:, None].expand_as(prediction.x_t))


def test_estimates_are_bounded_before_a_weight_enlarges_them(mixture: GaussianMixture):
    """0 + 3 (0.2 - 0), and not -0.1 + 3 (0.2 + 0.1); alike in the covariance and in the step."""
    mixed, found = guided_step(mixture, Astray)
    assert_close(mixed, torch.full_like(mixed, 0.6), rtol=1e-6, atol=0)
    assert_close(found, STEP.lambda_sq + STEP.c**2 * mixed, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", [Guidance, partial(ClassifierFreeGuidance, weight=1.0)])
def test_a_step_that_mixes_no_two_answers_is_the_strategys_own(
    mixture: GaussianMixture, kind: Callable[[Denoiser, int], Guidance]
):
    """Of a learned range with v below 0, too: it is smaller than lambda^2."""
    raw, level = oracle(mixture), LEVELS[2]
    strategy = LearnedRange(raw, SimpleHead).double()
    nn.init.constant_(strategy.head.output.bias, -3.0)
    x_t, labels = noisy(mixture, level)
    own = strategy.transition(STEP, raw, raw(x_t, level, labels)).diagonal()
    assert (own < STEP.lambda_sq).any()
    assert torch.equal(answers(kind(raw, 3), raw, strategy, x_t, level, labels)[2], own)


class Jacobian(Closed):
    """``C = r (I - sigma de/dx)`` of the denoiser it is handed, as strategies without a fit would have it."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level

        def eps_of(x: Tensor) -> Tensor:
            return denoiser(x, level, prediction.condition).eps.sum(0)

        slope = torch.autograd.functional.jacobian(eps_of, prediction.x_t)  # [D, B, D]
        return DiagonalCovariance(level.noise_variance * (1 - level.sigma * slope.diagonal(dim1=0, dim2=2)))


def test_a_strategy_that_asks_the_denoiser_gets_answers_for_the_labels_in_question(mixture: GaussianMixture):
    raw, level = oracle(mixture), LEVELS[2]
    x_t, labels = noisy(mixture, level)
    guidance = ClassifierFreeGuidance(raw, 3, 3.0)
    found, exact = (answers(guidance, raw, kind(raw), x_t, level, labels)[1] for kind in (Jacobian, Oracle))
    assert_close(found, exact, rtol=1e-8, atol=1e-10)


@levels
def test_classes_of_one_covariance_lose_what_lies_between_them(mixture: GaussianMixture, level: NoiseLevels):
    """C_c is the same for all, C_u = C_c + B with B between the classes, so that C_w = C_c - (w - 1) B."""
    alike = GaussianMixture(mixture.means, [0.04] * 3, mixture.weights)
    raw, (x_t, labels) = oracle(alike), noisy(mixture, level)
    _, found, _ = answers(ClassifierFreeGuidance(raw, 3, 3.0), raw, Oracle(raw), x_t, level, labels)
    alpha, sigma = level.alpha, level.sigma
    within = 0.04 * sigma**2 / (alpha**2 * 0.04 + sigma**2)
    responsibility = Bayes(alike, SCHEDULE)(x_t, level.t * 1000).softmax(1)
    means = alike.means * sigma**2 / (alpha**2 * 0.04 + sigma**2)  # of E[x_0 | x_t, k], what differs between k
    between = responsibility @ means**2 - (responsibility @ means) ** 2
    assert_close(found, (within - 2 * between).clamp(0, 1), rtol=1e-8, atol=1e-10)


class TwoGaussians(nn.Module):
    """A class and an "unconditional" distribution that are Gaussians of one covariance: where guidance is exact."""

    data_shape, feature_channels, num_classes = (2,), 2, 1
    variance = torch.tensor([0.04, 0.09], dtype=torch.float64)
    means = torch.tensor([[0.3, -0.2], [-0.1, 0.1]], dtype=torch.float64)  # of the class, and of the null label

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = SCHEDULE.alpha(time[:, None] / 1000), SCHEDULE.sigma(time[:, None] / 1000)
        eps = sigma * (x_t - alpha * self.means[labels]) / (alpha**2 * self.variance + sigma**2)
        return eps, x_t


class ExactOfTwo(Closed):
    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        alpha, sigma, variance = prediction.level.alpha, prediction.level.sigma, TwoGaussians.variance
        return DiagonalCovariance((variance * sigma**2 / (alpha**2 * variance + sigma**2)).expand_as(prediction.x_t))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize(("s", "t"), [(1, 2), (100, 300), (1, 1000), (500, 1000)])
def test_between_gaussians_of_one_covariance_guided_steps_are_exact(weight: float, eta: float, s: int, t: int):
    """N(alpha_t mu_w, A_t) is taken to N(alpha_s mu_w, A_s), mu_w = mu_u + w (mu_c - mu_u), at any stride."""
    raw = Denoiser(TwoGaussians(), SCHEDULE)
    at, to = (SCHEDULE.levels(torch.tensor(n / 1000, dtype=torch.float64)) for n in (t, s))
    kernel = ReverseKernel.from_levels(to, at, eta)
    wanted = torch.lerp(raw.network.means[1], raw.network.means[0], weight)
    centre = at.alpha * wanted
    x_t = torch.stack([centre, centre + torch.tensor([1.0, 0.0]), centre + torch.tensor([0.0, 1.0])])
    labels = torch.zeros(3, dtype=torch.long)
    guidance, strategy = ClassifierFreeGuidance(raw, 1, weight), ExactOfTwo(raw)
    prediction = guidance.predict(raw, strategy, x_t, at, labels)
    mean = kernel.mean(prediction.x0, prediction.eps)
    assert_close(mean[0], to.alpha * wanted, rtol=1e-9, atol=1e-11)
    slope = (mean[1:] - mean[0]).diagonal()
    marginal_t, marginal_s = (u.alpha**2 * TwoGaussians.variance + u.sigma**2 for u in (at, to))
    added = guidance.transition(kernel, raw, strategy, prediction).diagonal()[0]
    assert_close(slope**2 * marginal_t + added, marginal_s, rtol=1e-9, atol=0)


@levels
@pytest.mark.parametrize("weight", WEIGHTS)
def test_an_exact_classifier_guides_as_no_classifier_does(mixture: GaussianMixture, weight: float, level: NoiseLevels):
    """grad log p(y|x_t) = grad log q_c - grad log q_u, whether the network knows classes (from w = 1 on) or not."""
    x_t, labels = noisy(mixture, level)
    known, plain = oracle(mixture), oracle(mixture, classes=False)
    expected = ClassifierFreeGuidance(known, 3, weight).predict(known, Oracle(known), x_t, level, labels)
    for base, scale in ((plain, weight), (known, weight - 1)):
        guidance = ClassifierGuidance(base, 3, partial(Bayes, mixture, SCHEDULE), scale)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                at = NoiseLevels(*(entry.clone() for entry in (level.t, level.alpha, level.sigma, level.log_snr)))
                prediction = guidance.predict(base, Oracle(base), x_t.clone(), at, labels.clone())
            assert isinstance(prediction, GuidedPrediction)
            assert_close(prediction.eps, expected.eps, rtol=1e-7, atol=1e-9)
            assert_close(prediction.output, prediction.eps, rtol=0, atol=0)  # f is eps here
            assert_close(prediction.x0, expected.x0, rtol=1e-7, atol=1e-9 / float(level.alpha))
        # as published, the covariance stays the network's own
        own = Oracle(base).bounded_covariance(base, base(x_t, level, labels if base is known else None)).diagonal()
        _, covariance, step = answers(guidance, base, Oracle(base), x_t, level, labels)
        assert torch.equal(covariance, own)
        assert torch.equal(step, STEP.lambda_sq + STEP.c**2 * own)


@pytest.mark.parametrize("parameterization", [X0, Velocity, EDM])
@pytest.mark.parametrize("n", [1, 500, 1000])
def test_a_classifier_guides_a_flow_up_to_its_end(
    mixture: GaussianMixture, parameterization: type[Parameterization], n: int
):
    """Where no signal is left a classifier knows nothing of x_t, and moves nothing."""
    schedule = FlowSchedule(1000)
    level = schedule.levels(torch.tensor(n / 1000, dtype=torch.float64))
    raw = oracle(mixture, schedule, classes=False, parameterization=parameterization)
    x_t, labels = noisy(mixture, level)
    guidance = ClassifierGuidance(raw, 3, partial(Bayes, mixture, schedule), 2.0)
    found = guidance.predict(raw, Oracle(raw), x_t, level, labels)
    m_u, m_c = (mixture.posterior(x_t, level.alpha, level.sigma, y)[0] for y in (None, labels))
    wanted = m_u + 2 * (m_c - m_u) if n < 1000 else m_u
    assert_close(found.x0, wanted, rtol=1e-7, atol=1e-8)
    assert_close(found.eps, (x_t - level.alpha * wanted) / level.sigma, rtol=1e-6, atol=1e-8)
    assert_close(found.output, raw.parameterization.target(found.x0, found.eps, level), rtol=1e-9, atol=1e-9)


@levels
def test_what_classifier_guidance_leaves_out_of_the_covariance_is_a_hessian(
    mixture: GaussianMixture, level: NoiseLevels
):
    """C_w = C + w (sigma^4 / alpha^2) Hess log p(y|x_t): the derivation of the module's second line."""
    x_t, labels = noisy(mixture, level, count=6)
    alpha, sigma = level.alpha, level.sigma
    own, of_class = (mixture.posterior(x_t, alpha, sigma, y)[1].diagonal(dim1=1, dim2=2) for y in (None, labels))
    full = own + 2.5 * (of_class - own)  # that of classifier-free guidance, as the tests above have it
    classify = Bayes(mixture, SCHEDULE)
    for i, label in enumerate(labels):
        curvature = hessian(
            lambda x, y=label: classify(x[None], level.t * 1000).log_softmax(1)[0, y], x_t[i]
        ).diagonal()
        left_out = 2.5 * sigma**4 / alpha**2 * curvature
        assert_close(full[i] - own[i], left_out, rtol=1e-6, atol=1e-11 * float(1 + sigma**4 / alpha**2))


@pytest.mark.parametrize("kind", [NPR, SN, LearnedRange])
def test_heads_read_each_answer_of_the_network_with_its_own_features_and_noise(
    mixture: GaussianMixture, kind: type[TrainedHead]
):
    raw, level = oracle(mixture), LEVELS[2]
    torch.manual_seed(0)
    strategy = kind(raw, SimpleHead).double()
    nn.init.normal_(strategy.head.output.weight, std=0.1)
    nn.init.constant_(strategy.head.output.bias, 0.5)
    raw.network.register_forward_hook(  # features that tell labels apart, as a trained network's do
        lambda module, arguments, answer: (answer[0], answer[1] * (1 + arguments[2][:, None]))
    )
    x_t, labels = noisy(mixture, level)
    _, _, found = answers(ClassifierFreeGuidance(raw, 3, 1.7), raw, strategy, x_t, level, labels)
    low, high = (strategy.transition(STEP, raw, raw(x_t, level, given)).diagonal() for given in (None, labels))
    assert not torch.equal(low, high)
    expected = (low + 1.7 * (high - low)).clamp(STEP.lambda_sq, STEP.lambda_sq + STEP.c**2)
    assert_close(found, expected, rtol=1e-10, atol=0)


def test_under_a_classifier_a_strategy_models_the_networks_own_answer(mixture: GaussianMixture):
    """SN subtracts the square of what the network said, not of what guidance made of it."""
    raw, level = oracle(mixture, classes=False), LEVELS[2]
    strategy = SN(raw, SimpleHead).double()
    nn.init.constant_(strategy.head.output.bias, 2.0)
    x_t, labels = noisy(mixture, level)
    guidance = ClassifierGuidance(raw, 3, partial(Bayes, mixture, SCHEDULE), 2.0)
    prediction, covariance, step = answers(guidance, raw, strategy, x_t, level, labels)
    own = strategy.bounded_covariance(raw, raw(x_t, level)).diagonal()
    assert not torch.allclose(prediction.output, raw(x_t, level).output)
    assert own.gt(0).any()
    assert torch.equal(covariance, own)
    assert torch.equal(step, strategy.transition(STEP, raw, raw(x_t, level)).diagonal())


def test_fixed_variances_stay_what_they_are_under_guidance(mixture: GaussianMixture):
    raw, level = oracle(mixture), LEVELS[2]
    x_t, labels = noisy(mixture, level)
    guidance, strategy = ClassifierFreeGuidance(raw, 3, 3.0), BetaTilde(raw)
    prediction = guidance.predict(raw, strategy, x_t, level, labels)
    found = guidance.transition(STEP, raw, strategy, prediction)
    assert isinstance(found, IsotropicCovariance)
    assert_close(found.variance, STEP.lambda_sq.expand(24), rtol=1e-14, atol=0)


def test_the_analytic_pass_measures_the_classes_and_the_null_label():
    schedule = CosineSchedule(8)
    line = GaussianMixture([[-0.6], [0.5]], [0.01, 0.04], [0.4, 0.6])
    raw, g = oracle(line, schedule), torch.Generator().manual_seed(0)
    labels = line.draw_components(4000, torch.Generator().manual_seed(0))
    clean = line.sample(4000, g).float()
    strategy = Analytic(raw)
    with pytest.raises(ValueError, match=r"labels must be given \(got None\)"):
        strategy.calibrate(raw, [clean])
    strategy.calibrate(raw, clean.split(1000), labels=labels)
    level, eps = schedule.levels(schedule.grid()[2]), torch.randn(4000, 1, dtype=torch.float64, generator=g)
    alpha, sigma = level.alpha, level.sigma
    x_t = alpha * clean.double() + sigma * eps
    half = torch.where(torch.arange(4000) < 2000, labels, 2)
    found = strategy.covariance(raw, raw(x_t, level, half)).diagonal()[:, 0]
    for rows, given, error in (
        (slice(2000), labels, strategy.eps_variance_se),
        (slice(2000, None), None, strategy.null_eps_variance_se),
    ):
        exact = line.posterior(x_t, alpha, sigma, given)[1].mean()
        assert found[rows].unique().numel() == 1
        assert abs(found[rows][0] - exact) < 6 * error[3] * sigma**2 / alpha**2 + 0.03 * exact
    assert found[0] < 0.8 * found[-1], "the class tells nothing: the two tables cannot be told apart"
    unconditional = Analytic(oracle(line, schedule, classes=False))
    assert list(unconditional.state_dict()) == ["eps_variance", "eps_variance_se"]


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_samples_are_of_the_wanted_class_whatever_the_batch(mixture: GaussianMixture, weight: float):
    raw = oracle(mixture)
    labels = cycle_labels([2, 0], 3, 150)
    times = EvenTrajectory().times(SCHEDULE, 25)
    draw = partial(
        sample, raw, Oracle(raw), DDPMSampler(25), times, 150, labels=labels, progress=False,
        guidance=ClassifierFreeGuidance(raw, 3, weight),
    )  # fmt: skip
    found = draw(batch_size=150)
    assert_close(draw(batch_size=40), found, rtol=1e-4, atol=1e-5)
    share = mixture_share(mixture, found, labels)
    assert share > 0.97 if weight else 0.2 < share < 0.5


def mixture_share(mixture: GaussianMixture, x_0: Tensor, labels: Tensor) -> float:
    """How many are most likely of their label."""
    guessed = Bayes(mixture, SCHEDULE)(x_0.double(), torch.zeros((), dtype=torch.float64)).argmax(1)
    return float(guessed.eq(labels).double().mean())


def test_what_cannot_be_guided_is_refused(mixture: GaussianMixture):
    known, plain = oracle(mixture), oracle(mixture, classes=False)
    with pytest.raises(ValueError, match="must have a mean network that knows classes"):
        ClassifierFreeGuidance(plain, 3)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"guidance\.weight must be finite \(got {weight}\)"):
            ClassifierFreeGuidance(known, 3, weight)
        with pytest.raises(ValueError, match=rf"guidance\.weight must be finite \(got {weight}\)"):
            ClassifierGuidance(plain, 3, Classifier, weight)
    with pytest.raises(ValueError, match=r"must have data with classes \(got none\)"):
        ClassifierGuidance(plain, None, Classifier)
    with pytest.raises(ValueError, match="the network knows no classes"):
        plain(torch.zeros(2, 2), LEVELS[0], torch.zeros(2, dtype=torch.long))
    draw = partial(sample, known, BetaTilde(known), DDPMSampler(2), EvenTrajectory().times(SCHEDULE, 2), 3)
    with pytest.raises(ValueError, match="labels must be given with guidance"):
        draw(guidance=Guidance(known))
    with pytest.raises(ValueError, match=r"labels must be one for each of 3 samples \(got 2\)"):
        draw(labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"classes must be the 3 components .*\(got 4\)"):
        OracleNetwork((2,), mixture, SCHEDULE, num_classes=4)


def test_guidance_without_labels_is_the_network_itself(mixture: GaussianMixture):
    """Where nothing is wanted nothing is steered, from one call, whatever the weight."""
    level = LEVELS[2]
    x_t, _ = noisy(mixture, level)
    for raw in (oracle(mixture), oracle(mixture, classes=False)):
        guidances = [Guidance(raw), ClassifierGuidance(raw, 3, partial(Bayes, mixture, SCHEDULE), 3.0)]
        if raw.num_classes:
            guidances.append(ClassifierFreeGuidance(raw, 3, 3.0))
        plain = raw(x_t, level)
        own = Oracle(raw).bounded_covariance(raw, plain).diagonal()
        for guidance in guidances:
            raw.cost.reset()
            prediction, covariance, step = answers(guidance, raw, Oracle(raw), x_t, level, None)
            assert raw.cost.nfe == 24
            assert torch.equal(prediction.x0, plain.x0)
            assert torch.equal(covariance, own)
            assert torch.equal(step, STEP.lambda_sq + STEP.c**2 * own)
