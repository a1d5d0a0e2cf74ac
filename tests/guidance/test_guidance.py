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
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance, GuidedVariance
from optcov.kernel import ReverseKernel
from optcov.labels import cycle_labels, draw_labels
from optcov.model import Classifier, SimpleHead
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDPMSampler, sample
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

SCHEDULE = LinearSchedule(1000)
TIMES = [torch.tensor(n / 1000, dtype=torch.float64) for n in (1, 100, 300, 1000)]
WEIGHTS = [-0.5, 0.4, 3.0]


class Oracle(VarianceStrategy):
    """The diagonal of the exact Cov[x_0 | x_t], or of Cov[x_0 | x_t, y]."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        schedule, network = denoiser.schedule, denoiser.network
        exact = network.mixture.posterior(x_t, schedule.alpha(t), schedule.sigma(t), prediction.labels)[1]
        return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2))


class Bayes(nn.Module):
    """The exact classifier, ``log p(y|x_t)``."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule, *shapes: object) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        joint = [
            weight.log() + GaussianMixture(mean[None], covariance[None]).log_density(x_t, alpha, sigma)
            for weight, mean, covariance in zip(
                self.mixture.weights, self.mixture.means, self.mixture.covariances, strict=True
            )
        ]
        return torch.stack(joint, 1)


def oracle(mixture: GaussianMixture, schedule: NoiseSchedule = SCHEDULE, classes: bool = True) -> Denoiser:
    count = len(mixture.weights) if classes else None
    return Denoiser(OracleNetwork((mixture.dim,), mixture, schedule, num_classes=count), schedule).eval()


def noisy(mixture: GaussianMixture, t: Tensor, count: int = 24) -> tuple[Tensor, Tensor]:
    """x_t, further out than data are, and labels that have nothing to do with it."""
    g = torch.Generator().manual_seed(7)
    x_0, eps = mixture.sample(count, g), torch.randn(count, mixture.dim, dtype=torch.float64, generator=g)
    x_t = SCHEDULE.alpha(t) * x_0 + (0.2 + SCHEDULE.sigma(t)) * eps
    return x_t, torch.arange(count) % len(mixture.weights)


def component(mixture: GaussianMixture, label: Tensor) -> GaussianMixture:
    return GaussianMixture(mixture.means[label][None], mixture.covariances[label][None])


@pytest.mark.parametrize("t", TIMES)
def test_the_labelled_oracle_is_that_of_each_component(mixture: GaussianMixture, t: Tensor):
    x_t, labels = noisy(mixture, t)
    denoiser = oracle(mixture)
    found = denoiser(x_t, t, labels)
    for x, label, eps in zip(x_t, labels, found.eps, strict=True):
        assert_close(eps, oracle(component(mixture, label))(x[None], t).eps[0], rtol=1e-10, atol=1e-10)
    null = torch.full_like(labels, 3)
    plain = oracle(mixture, classes=False)(x_t, t)
    assert plain.labels is None
    for unlabelled in (denoiser(x_t, t), denoiser(x_t, t, null)):
        assert torch.equal(unlabelled.eps, plain.eps)
        assert torch.equal(unlabelled.labels, null)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_classifier_free_mean_and_covariance_are_those_of_the_guided_density(
    mixture: GaussianMixture, weight: float, t: Tensor
):
    """e = -sigma grad log(q_u^{1-w} q_c^w), by autograd of the densities; C = r (I - sigma de/dx), by that of e."""
    x_t, labels = noisy(mixture, t)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    raw = oracle(mixture)
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, weight).bind(raw, Oracle(raw), labels)
    prediction = denoiser(x_t, t)
    covariance = strategy.covariance(denoiser, prediction, x_t, t).diagonal()
    assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-9, atol=1e-9)
    for i, label in enumerate(labels):

        def log_density(x: Tensor, label: Tensor = label) -> Tensor:
            of_class = component(mixture, label).log_density(x[None], alpha, sigma)
            return ((1 - weight) * mixture.log_density(x[None], alpha, sigma) + weight * of_class).sum()

        score = torch.autograd.functional.jacobian(log_density, x_t[i])
        assert_close(prediction.eps[i], -sigma * score, rtol=1e-7, atol=1e-9)
        slope = (sigma**2 / alpha**2) * (1 + sigma**2 * hessian(log_density, x_t[i]).diagonal())
        # r (1 - sigma de/dx) cancels to the size of r's rounding where r is large
        assert_close(covariance[i], slope, rtol=1e-6, atol=1e-11 * float(1 + sigma**4 / alpha**2))


def test_weights_one_and_zero_are_the_conditional_and_the_unconditional_model_from_one_call(mixture: GaussianMixture):
    sizes = []
    raw = oracle(mixture)
    raw.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    t = TIMES[2]
    x_t, labels = noisy(mixture, t)
    kernel = ReverseKernel.between(SCHEDULE, TIMES[1], t)
    for weight, given in ((1.0, labels), (0.0, None)):
        guidance = ClassifierFreeGuidance(raw, 3, weight)
        denoiser, strategy = guidance.bind(raw, Oracle(raw), labels)
        sizes.clear()
        prediction = denoiser(x_t, t)
        assert sizes == [24]
        assert guidance.network_calls == 1
        plain = raw(x_t, t, given)
        assert torch.equal(prediction.eps, plain.eps)
        assert torch.equal(prediction.x0, plain.x0)
        found = strategy.transition(kernel, denoiser, prediction, x_t, t).diagonal()
        assert torch.equal(found, Oracle(raw).transition(kernel, raw, plain, x_t, t).diagonal())
    guidance = ClassifierFreeGuidance(raw, 3, 2.0)
    sizes.clear()
    guidance.bind(raw, Oracle(raw), labels)[0](x_t, t)
    assert sizes == [48]
    assert guidance.network_calls == 2


def test_times_may_differ_within_a_batch(mixture: GaussianMixture):
    raw, (x_t, labels) = oracle(mixture), noisy(mixture, TIMES[1])
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, Oracle(raw), labels)
    each = torch.linspace(0.1, 1, 24, dtype=torch.float64)
    together = denoiser(x_t, each)
    covariance = strategy.covariance(denoiser, together, x_t, each).diagonal()
    for i in (0, 11, 23):
        alone, alone_strategy = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, Oracle(raw), labels[i : i + 1])
        prediction = alone(x_t[i : i + 1], each[i])
        assert_close(together.eps[i], prediction.eps[0], rtol=1e-10, atol=1e-12)
        one = alone_strategy.covariance(alone, prediction, x_t[i : i + 1], each[i]).diagonal()
        assert_close(covariance[i], one[0], rtol=1e-9, atol=1e-12)


def guided_step(mixture: GaussianMixture, strategy: type[VarianceStrategy]) -> tuple[Tensor, Tensor, ReverseKernel]:
    """Of a strategy guided at w = 3: the diagonals of its C and of its step, and the kernel of the step."""
    raw, t = oracle(mixture), TIMES[2]
    x_t, labels = noisy(mixture, t)
    kernel = ReverseKernel.between(SCHEDULE, TIMES[1], t)
    denoiser, guided = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, strategy(raw), labels)
    prediction = denoiser(x_t, t)
    mixed = guided.covariance(denoiser, prediction, x_t, t).diagonal()
    return mixed, guided.transition(kernel, denoiser, prediction, x_t, t).diagonal(), kernel


def test_a_guided_step_has_the_guided_covariance_within_the_bounds_of_data(mixture: GaussianMixture):
    mixed, found, kernel = guided_step(mixture, Oracle)
    assert mixed.lt(0).any(), "the bound at 0 is not tried"
    assert mixed.gt(0).any()
    assert_close(found, kernel.lambda_sq + kernel.c**2 * mixed.clamp(0, 1), rtol=1e-10, atol=1e-14)


class Astray(VarianceStrategy):
    """An estimate that leaves [0, 1] for the null label alone."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        return DiagonalCovariance(torch.where(prediction.labels == 3, -0.1, 0.2)[:, None].expand_as(x_t).double())


def test_estimates_are_bounded_before_a_weight_enlarges_them(mixture: GaussianMixture):
    """0 + 3 (0.2 - 0), and not -0.1 + 3 (0.2 + 0.1); alike in the covariance and in the step."""
    mixed, found, kernel = guided_step(mixture, Astray)
    assert_close(mixed, torch.full_like(noisy(mixture, TIMES[2])[0], 0.6), rtol=1e-6, atol=0)
    assert_close(found, kernel.lambda_sq + kernel.c**2 * mixed, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", [Guidance, partial(ClassifierFreeGuidance, weight=1.0)])
def test_a_step_that_mixes_no_two_answers_is_the_strategys_own(
    mixture: GaussianMixture, kind: Callable[[Denoiser, int], Guidance]
):
    """Of a learned range with v below 0, too: it is smaller than lambda^2."""
    raw, t = oracle(mixture), TIMES[2]
    strategy = LearnedRange(raw, SimpleHead).double()
    nn.init.constant_(strategy.head.output.bias, -3.0)
    x_t, labels = noisy(mixture, t)
    kernel = ReverseKernel.between(SCHEDULE, TIMES[1], t)
    own = strategy.transition(kernel, raw, raw(x_t, t, labels), x_t, t).diagonal()
    assert (own < kernel.lambda_sq).any()
    denoiser, bound = kind(raw, 3).bind(raw, strategy, labels)
    assert torch.equal(bound.transition(kernel, denoiser, denoiser(x_t, t), x_t, t).diagonal(), own)


class Jacobian(VarianceStrategy):
    """``C = r (I - sigma de/dx)`` of the denoiser it is handed, as strategies without a fit would have it."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        slope = torch.autograd.functional.jacobian(lambda x: denoiser(x, t).eps.sum(0), x_t)  # [D, B, D]
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return DiagonalCovariance(sigma**2 / alpha**2 * (1 - sigma * slope.diagonal(dim1=0, dim2=2)))


def test_a_strategy_that_asks_the_denoiser_gets_answers_for_the_labels_in_question(mixture: GaussianMixture):
    raw, t = oracle(mixture), TIMES[2]
    x_t, labels = noisy(mixture, t)
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, Jacobian(raw), labels)
    prediction = denoiser(x_t, t)
    exact = GuidedVariance(Oracle(raw)).covariance(denoiser, prediction, x_t, t).diagonal()
    assert_close(strategy.covariance(denoiser, prediction, x_t, t).diagonal(), exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("t", TIMES)
def test_classes_of_one_covariance_lose_what_lies_between_them(mixture: GaussianMixture, t: Tensor):
    """C_c is the same for all, C_u = C_c + B with B between the classes, so that C_w = C_c - (w - 1) B."""
    alike = GaussianMixture(mixture.means, [0.04] * 3, mixture.weights)
    raw, (x_t, labels) = oracle(alike), noisy(mixture, t)
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, Oracle(raw), labels)
    found = strategy.covariance(denoiser, denoiser(x_t, t), x_t, t).diagonal()
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    within = 0.04 * sigma**2 / (alpha**2 * 0.04 + sigma**2)
    responsibility = Bayes(alike, SCHEDULE)(x_t, t).softmax(1)
    means = alike.means * sigma**2 / (alpha**2 * 0.04 + sigma**2)  # of E[x_0 | x_t, k], what differs between k
    between = responsibility @ means**2 - (responsibility @ means) ** 2
    assert_close(found, within - 2 * between, rtol=1e-8, atol=1e-10)


class TwoGaussians(nn.Module):
    """A class and an "unconditional" distribution that are Gaussians of one covariance: where guidance is exact."""

    data_shape, feature_channels, num_classes = (2,), 2, 1
    variance = torch.tensor([0.04, 0.09], dtype=torch.float64)
    means = torch.tensor([[0.3, -0.2], [-0.1, 0.1]], dtype=torch.float64)  # of the class, and of the null label

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = SCHEDULE.alpha(time[:, None] / 1000), SCHEDULE.sigma(time[:, None] / 1000)
        eps = sigma * (x_t - alpha * self.means[labels]) / (alpha**2 * self.variance + sigma**2)
        return eps, x_t


class ExactOfTwo(VarianceStrategy):
    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        variance = TwoGaussians.variance
        return DiagonalCovariance((variance * sigma**2 / (alpha**2 * variance + sigma**2)).expand_as(x_t))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize(("s", "t"), [(1, 2), (100, 300), (1, 1000), (500, 1000)])
def test_between_gaussians_of_one_covariance_guided_steps_are_exact(weight: float, eta: float, s: int, t: int):
    """N(alpha_t mu_w, A_t) is taken to N(alpha_s mu_w, A_s), mu_w = mu_u + w (mu_c - mu_u), at any stride."""
    raw = Denoiser(TwoGaussians(), SCHEDULE)
    at, to = (torch.tensor(n / 1000, dtype=torch.float64) for n in (t, s))
    kernel = ReverseKernel.between(SCHEDULE, to, at, eta)
    wanted = torch.lerp(raw.network.means[1], raw.network.means[0], weight)
    centre = SCHEDULE.alpha(at) * wanted
    x_t = torch.stack([centre, centre + torch.tensor([1.0, 0.0]), centre + torch.tensor([0.0, 1.0])])
    labels = torch.zeros(3, dtype=torch.long)
    denoiser, strategy = ClassifierFreeGuidance(raw, 1, weight).bind(raw, ExactOfTwo(raw), labels)
    prediction = denoiser(x_t, at)
    mean = kernel.mean(prediction.x0, prediction.eps)
    assert_close(mean[0], SCHEDULE.alpha(to) * wanted, rtol=1e-9, atol=1e-11)
    slope = (mean[1:] - mean[0]).diagonal()
    marginal_t, marginal_s = (SCHEDULE.alpha(u) ** 2 * TwoGaussians.variance + SCHEDULE.sigma(u) ** 2 for u in (at, to))
    added = strategy.transition(kernel, denoiser, prediction, x_t, at).diagonal()[0]
    assert_close(slope**2 * marginal_t + added, marginal_s, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_an_exact_classifier_guides_as_no_classifier_does(mixture: GaussianMixture, weight: float, t: Tensor):
    """grad log p(y|x_t) = grad log q_c - grad log q_u, whether the network knows classes (from w = 1 on) or not."""
    x_t, labels = noisy(mixture, t)
    known, plain = oracle(mixture), oracle(mixture, classes=False)
    expected = ClassifierFreeGuidance(known, 3, weight).predict(known, x_t, t, labels)
    for base, scale in ((plain, weight), (known, weight - 1)):
        guidance = ClassifierGuidance(base, 3, partial(Bayes, mixture, SCHEDULE), scale)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                prediction = guidance.predict(base, x_t.clone(), t.clone(), labels.clone())
            assert_close(prediction.eps, expected.eps, rtol=1e-7, atol=1e-9)
            assert_close(prediction.x0, expected.x0, rtol=1e-7, atol=1e-9 / float(SCHEDULE.alpha(t)))
        # as published, the covariance stays the network's own
        denoiser, strategy = guidance.bind(base, Oracle(base), labels)
        own = Oracle(base).covariance(base, base(x_t, t, labels if base is known else None), x_t, t).diagonal()
        assert torch.equal(strategy.covariance(denoiser, denoiser(x_t, t), x_t, t).diagonal(), own)


@pytest.mark.parametrize("t", TIMES)
def test_what_classifier_guidance_leaves_out_of_the_covariance_is_a_hessian(mixture: GaussianMixture, t: Tensor):
    """C_w = C + w (sigma^4 / alpha^2) Hess log p(y|x_t): the derivation of the module's second line."""
    x_t, labels = noisy(mixture, t, count=6)
    raw, alpha, sigma = oracle(mixture), SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, 2.5).bind(raw, Oracle(raw), labels)
    full = strategy.covariance(denoiser, denoiser(x_t, t), x_t, t).diagonal()
    own = Oracle(raw).covariance(raw, raw(x_t, t), x_t, t).diagonal()
    classify = Bayes(mixture, SCHEDULE)
    for i, label in enumerate(labels):
        curvature = hessian(lambda x, y=label: classify(x[None], t).log_softmax(1)[0, y], x_t[i]).diagonal()
        left_out = 2.5 * sigma**4 / alpha**2 * curvature
        assert_close(full[i] - own[i], left_out, rtol=1e-6, atol=1e-11 * float(1 + sigma**4 / alpha**2))


@pytest.mark.parametrize("kind", [NPR, SN, LearnedRange])
def test_heads_read_each_answer_of_the_network_with_its_own_features_and_noise(
    mixture: GaussianMixture, kind: type[VarianceStrategy]
):
    raw, t = oracle(mixture), TIMES[2]
    torch.manual_seed(0)
    strategy = kind(raw, SimpleHead).double()
    nn.init.normal_(strategy.head.output.weight, std=0.1)
    nn.init.constant_(strategy.head.output.bias, 0.5)
    raw.network.register_forward_hook(  # features that tell labels apart, as a trained network's do
        lambda module, arguments, answer: (answer[0], answer[1] * (1 + arguments[2][:, None]))
    )
    x_t, labels = noisy(mixture, t)
    kernel = ReverseKernel.between(SCHEDULE, TIMES[1], t)
    denoiser, guided = ClassifierFreeGuidance(raw, 3, 1.7).bind(raw, strategy, labels)
    found = guided.transition(kernel, denoiser, denoiser(x_t, t), x_t, t).diagonal()
    low, high = (strategy.transition(kernel, raw, raw(x_t, t, given), x_t, t).diagonal() for given in (None, labels))
    assert not torch.equal(low, high)
    expected = (low + 1.7 * (high - low)).clamp(kernel.lambda_sq, kernel.lambda_sq + kernel.c**2)
    assert_close(found, expected, rtol=1e-10, atol=0)
    assert guided.cut_last == strategy.cut_last


def test_fixed_variances_stay_what_they_are_under_guidance(mixture: GaussianMixture):
    raw, t = oracle(mixture), TIMES[2]
    x_t, labels = noisy(mixture, t)
    kernel = ReverseKernel.between(SCHEDULE, TIMES[1], t)
    denoiser, strategy = ClassifierFreeGuidance(raw, 3, 3.0).bind(raw, BetaTilde(raw), labels)
    found = strategy.transition(kernel, denoiser, denoiser(x_t, t), x_t, t)
    assert isinstance(found, IsotropicCovariance)
    assert_close(found.variance, kernel.lambda_sq.expand(24), rtol=1e-14, atol=0)


def test_the_analytic_pass_measures_the_classes_and_the_null_label():
    schedule = CosineSchedule(8)
    line = GaussianMixture([[-0.6], [0.5]], [0.01, 0.04], [0.4, 0.6])
    raw, g = oracle(line, schedule), torch.Generator().manual_seed(0)
    labels = line.draw_components(4000, torch.Generator().manual_seed(0))
    clean = line.sample(4000, g).float()
    strategy = Analytic(raw)
    with pytest.raises(ValueError, match="labels is missing"):
        strategy.calibrate(raw, [clean])
    strategy.calibrate(raw, clean.split(1000), labels=labels)
    t, eps = schedule.grid()[2], torch.randn(4000, 1, dtype=torch.float64, generator=g)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = alpha * clean.double() + sigma * eps
    half = torch.where(torch.arange(4000) < 2000, labels, 2)
    prediction = raw(x_t, t, half)
    found = strategy.covariance(raw, prediction, x_t, t).diagonal()[:, 0]
    for rows, given, error in (
        (slice(2000), labels, strategy.eps_variance_se),
        (slice(2000, None), None, strategy.null_eps_variance_se),
    ):
        exact = line.posterior(x_t, alpha, sigma, given)[1].mean()
        assert found[rows].unique().numel() == 1
        assert abs(found[rows][0] - exact) < 6 * error[3] * sigma**2 / alpha**2 + 0.03 * exact
    assert found[0] < 0.8 * found[-1], "the class tells nothing: the two tables can not be told apart"
    unconditional = Analytic(oracle(line, schedule, classes=False))
    assert list(unconditional.state_dict()) == ["eps_variance", "eps_variance_se"]


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_samples_are_of_the_wanted_class_whatever_the_batch(mixture: GaussianMixture, weight: float):
    raw = oracle(mixture)
    labels = cycle_labels([2, 0], 3, 300)
    times = EvenTrajectory().times(SCHEDULE, 25)
    draw = partial(
        sample, raw, Oracle(raw), DDPMSampler(25), times, 300, labels=labels, progress=False,
        guidance=ClassifierFreeGuidance(raw, 3, weight),
    )  # fmt: skip
    found = draw(batch_size=300)
    assert_close(draw(batch_size=77), found, rtol=1e-4, atol=1e-5)
    share = mixture_share(mixture, found, labels)
    assert share > 0.97 if weight else 0.2 < share < 0.5


def mixture_share(mixture: GaussianMixture, x_0: Tensor, labels: Tensor) -> float:
    """How many are most likely of their label."""
    guessed = Bayes(mixture, SCHEDULE)(x_0.double(), torch.zeros((), dtype=torch.float64)).argmax(1)
    return float(guessed.eq(labels).double().mean())


def test_what_can_not_be_guided_is_refused(mixture: GaussianMixture):
    known, plain = oracle(mixture), oracle(mixture, classes=False)
    with pytest.raises(ValueError, match="wants a mean network that knows classes"):
        ClassifierFreeGuidance(plain, 3)
    with pytest.raises(ValueError, match=r"guidance\.weight = nan"):
        ClassifierFreeGuidance(known, 3, float("nan"))
    with pytest.raises(ValueError, match="wants data with classes"):
        ClassifierGuidance(plain, None, Classifier)
    with pytest.raises(ValueError, match="knows no classes"):
        plain(torch.zeros(2, 2), TIMES[0], torch.zeros(2, dtype=torch.long))
    draw = partial(sample, known, BetaTilde(known), DDPMSampler(2), EvenTrajectory().times(SCHEDULE, 2), 3)
    with pytest.raises(ValueError, match="leads nowhere"):
        draw(guidance=Guidance(known))
    with pytest.raises(ValueError, match="labels are 2, samples 3"):
        draw(labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"the oracle knows 3 components as classes, not 4"):
        OracleNetwork((2,), mixture, SCHEDULE, num_classes=4)


def test_drawn_labels_follow_the_data_and_the_seed_alone():
    frequencies = torch.tensor([5, 0, 15, 80])
    labels = draw_labels(frequencies, 20_000, seed=3)
    assert torch.equal(draw_labels(frequencies, 777, seed=3), labels[:777])
    assert not torch.equal(draw_labels(frequencies, 777, seed=4), labels[:777])
    shares = labels.bincount(minlength=4) / 20_000
    assert shares[1] == 0
    assert_close(shares.double(), frequencies.double() / 100, rtol=0, atol=0.015)  # 5 standard errors


def test_wanted_labels_come_in_turn():
    assert cycle_labels([3, 5, 3], 6, 7).tolist() == [3, 5, 3, 3, 5, 3, 3]
    assert cycle_labels(0, 1, 2).tolist() == [0, 0]
    for bad in (6, [1, 6], []):
        with pytest.raises(ValueError, match="labels must"):
            cycle_labels(bad, 6, 4)


def test_the_guided_variance_leaves_other_predictions_alone(mixture: GaussianMixture):
    raw, t = oracle(mixture, classes=False), TIMES[2]
    x_t, _ = noisy(mixture, t)
    prediction = raw(x_t, t)
    own = Oracle(raw).covariance(raw, prediction, x_t, t).diagonal()
    assert torch.equal(GuidedVariance(Oracle(raw)).covariance(raw, prediction, x_t, t).diagonal(), own)
