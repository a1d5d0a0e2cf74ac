"""Every consumer of a covariance, over every kind of covariance, against the same run with the dense matrix.

The data are a correlated mixture whose exact ``C = Cov[x_0|x_t]`` is known.  A kind is one way to hold C, or the part
of it that the kind can hold.  Whatever a consumer makes of a kind, it must make of the `FullCovariance` of the same
matrix: both runs do the same arithmetic on the same noise, in float64, so that they differ by rounding alone.  What a
consumer makes of the full matrix itself is compared with formulas written here.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from optcov.covariance import (
    DCT,
    BasisCovariance,
    Covariance,
    DiagonalCovariance,
    FullCovariance,
    IsotropicCovariance,
    KroneckerCovariance,
    LowRankCovariance,
    MatrixFreeCovariance,
    SumCovariance,
)
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance, Guidance
from optcov.kernel import ReverseKernel
from optcov.likelihood import VariationalBound
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDIMSampler, DDPMSampler, NoiseStream, PredictorCorrectorSampler, Sampler
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory, OptimalNLLTrajectory
from optcov.variance.base import Clean, Closed, StepModel
from optcov.variance.profile import variance_profile

SCHEDULE = LinearSchedule(1000)
# rounding, which a chain of ten steps passes on and a division by sigma_1 = 0.01 enlarges
SAME = {"rtol": 1e-8, "atol": 1e-9}
COUNT = 32
# a wide one, whose bound 1 no variance of these data reaches, and one whose bound 0.04 most of them pass
RANGES = {"bound_at_rest": DataRange(), "bound_at_work": DataRange(low=-0.2, high=0.2)}

Kind = Callable[[Tensor], Covariance]


def isotropic(matrix: Tensor) -> Covariance:
    return IsotropicCovariance(matrix.diagonal(dim1=1, dim2=2).mean(1), matrix.shape[1:2])


def diagonal(matrix: Tensor) -> Covariance:
    return DiagonalCovariance(matrix.diagonal(dim1=1, dim2=2))


def full(matrix: Tensor) -> Covariance:
    return FullCovariance(matrix, matrix.shape[1:2])


def full_of(kind: Kind) -> Kind:
    """The same matrix as a kind holds, densely."""
    return lambda matrix: full(kind(matrix).dense())


class Minimal(Covariance):
    """A kind with the abstract operations and nothing else, which remembers what it was asked for."""

    asked: ClassVar[set[str]] = set()

    def __init__(self, matrix: Tensor) -> None:
        self.held = FullCovariance(matrix, matrix.shape[1:2])


def answer(name: str) -> Callable[..., Any]:
    """An operation of `Minimal`, answered by the matrix it holds."""

    def operation(self: Minimal, *arguments: Any) -> Any:
        Minimal.asked.add(name)
        result = getattr(self.held, name)
        result = result(*arguments) if callable(result) else result
        return Minimal(result.matrix) if isinstance(result, FullCovariance) else result

    return operation


for name in Covariance.__abstractmethods__:
    is_property = isinstance(getattr(Covariance, name), property)
    setattr(Minimal, name, property(answer(name)) if is_property else answer(name))
Minimal.__abstractmethods__ = frozenset()


class Exact(Closed):
    """The oracle's exact ``Cov[x_0|x_t]``, or ``Cov[x_0|x_t, y]`` where a class is given, as a kind."""

    def __init__(self, denoiser: Denoiser, kind: Kind) -> None:
        super().__init__(denoiser)
        self.kind = kind

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        mixture, level = denoiser.network.mixture, prediction.level
        return self.kind(mixture.posterior(prediction.x_t, level.alpha, level.sigma, prediction.condition)[1])


class Shifted(Exact):
    """As an estimate that falls below 0 in places: C - 0.05 I."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        one = torch.ones((), dtype=torch.float64)
        return super().covariance(denoiser, prediction).affine(one, -0.05 * one)


class Scripted(NoiseStream):
    """Known draws, one after another, in place of random ones."""

    def __init__(self, draws: Iterator[Tensor]) -> None:
        self.script = draws

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return next(self.script)


def noise(count: int = COUNT, dim: int = 2, seed: int = 0) -> NoiseStream:
    return NoiseStream(seed, range(count), (dim,), dtype=torch.float64)


def make_denoiser(mixture: GaussianMixture, data_range: DataRange, classes: bool = False) -> Denoiser:
    network = OracleNetwork(
        (mixture.dim,), mixture, SCHEDULE, num_classes=len(mixture.weights) if classes else None, num_features=1
    )
    return Denoiser(network, SCHEDULE, data_range=data_range).eval()


def levels(*steps: int) -> list[Any]:
    return [SCHEDULE.levels(torch.tensor(n / 1000, dtype=torch.float64)) for n in steps]


kinds = pytest.mark.parametrize("kind", [isotropic, diagonal, Minimal])
ranges = pytest.mark.parametrize("data_range", RANGES.values(), ids=RANGES)
# nothing to bound, and bounds from both sides
cases = pytest.mark.parametrize(
    ("strategy", "data_range"),
    [(Exact, RANGES["bound_at_rest"]), (Shifted, RANGES["bound_at_work"])],
    ids=["unbounded", "bounded"],
)


def noisy(mixture: GaussianMixture, level: Any) -> Tensor:
    """x_t, further out than data are."""
    g = torch.Generator().manual_seed(7)
    x_0, eps = mixture.sample(COUNT, g), torch.randn(COUNT, mixture.dim, dtype=torch.float64, generator=g)
    return level.alpha * x_0 + (0.2 + level.sigma) * eps


@kinds
@cases
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("s", "t"), [(1, 2), (1, 300), (500, 1000)])
def test_the_kernel_makes_of_every_kind_what_it_makes_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, strategy: type[Exact], data_range: DataRange, eta: float, s: int, t: int
):
    denoiser = make_denoiser(mixture, data_range)
    at_s, at_t = levels(s, t)
    kernel = ReverseKernel.from_levels(at_s, at_t, eta)
    prediction = denoiser(noisy(mixture, at_t), at_t)
    found, dense = (
        strategy(denoiser, k).transition(kernel, denoiser, prediction).dense() for k in (kind, full_of(kind))
    )
    assert_close(found, dense, rtol=1e-10, atol=1e-12)  # one step, no division


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddpm": lambda: DDPMSampler(6),
    "ddpm_cut_hard": lambda: DDPMSampler(6, cut=0.1),
    "ddpm_unclipped_uncut": lambda: DDPMSampler(6, clip_x0=False, cut=None),
    "ddim_0": lambda: DDIMSampler(6, eta=0.0),
    "ddim_0_cut_hard": lambda: DDIMSampler(6, eta=0.0, cut=0.1),
    "ddim_half": lambda: DDIMSampler(6, eta=0.5),
    "ddim_1": lambda: DDIMSampler(6, eta=1.0),
    "predictor_corrector": lambda: PredictorCorrectorSampler(6),
}


@kinds
@cases
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_those_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, strategy: type[Exact], data_range: DataRange, name: str
):
    denoiser = make_denoiser(mixture, data_range)
    sampler, times = SAMPLERS[name](), EvenTrajectory().times(SCHEDULE, 6)
    found, dense = (sampler.sample(denoiser, strategy(denoiser, k), times, noise()) for k in (kind, full_of(kind)))
    assert found.isfinite().all()
    assert_close(found, dense, **SAME)


def test_kinds_are_told_apart_by_the_samples(mixture: GaussianMixture):
    """Or else the comparisons above compare nothing."""
    denoiser, times = make_denoiser(mixture, DataRange()), EvenTrajectory().times(SCHEDULE, 6)
    samples = [DDIMSampler(6).sample(denoiser, Exact(denoiser, k), times, noise()) for k in (isotropic, diagonal, full)]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert float((samples[one] - samples[other]).abs().max()) > 0.01


@kinds
@cases
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("sampler", [DDPMSampler(4), DDIMSampler(4, eta=0.0)], ids=["ddpm", "ddim"])
def test_guided_samples_are_those_of_the_matrix(
    mixture: GaussianMixture,
    kind: Kind,
    strategy: type[Exact],
    data_range: DataRange,
    weight: float,
    sampler: Sampler,
):
    denoiser = make_denoiser(mixture, data_range, classes=True)
    guidance = ClassifierFreeGuidance(denoiser, len(mixture.weights), weight)
    labels, times = torch.arange(COUNT) % len(mixture.weights), EvenTrajectory().times(SCHEDULE, 4)
    found, dense = (
        sampler.sample(denoiser, strategy(denoiser, k), times, noise(), guidance=guidance, condition=labels)
        for k in (kind, full_of(kind))
    )
    assert found.isfinite().all()
    assert_close(found, dense, **SAME)


def guided_transition(
    mixture: GaussianMixture, kind: Kind, weight: float
) -> tuple[ReverseKernel, Tensor, list[Tensor]]:
    """Kernel, covariance of the guided step, and both exact C: of the mixture, and of the class."""
    denoiser = make_denoiser(mixture, DataRange(), classes=True)
    guidance: Guidance = ClassifierFreeGuidance(denoiser, len(mixture.weights), weight)
    labels = torch.arange(COUNT) % len(mixture.weights)
    at_s, at_t = levels(100, 300)
    kernel = ReverseKernel.from_levels(at_s, at_t, 1.0)
    strategy, x_t = Exact(denoiser, kind), noisy(mixture, at_t)
    prediction = guidance.predict(denoiser, strategy, x_t, at_t, labels)
    step = guidance.transition(kernel, denoiser, strategy, prediction).dense()
    both = [mixture.posterior(x_t, at_t.alpha, at_t.sigma, given)[1] for given in (None, labels)]
    return kernel, step, [kind(matrix).dense() for matrix in both]


@kinds
@pytest.mark.parametrize("weight", [0.4, 3.0])
def test_guidance_mixes_whole_matrices(mixture: GaussianMixture, kind: Kind, weight: float):
    """C_u + w (C_c - C_u), correlations included; beyond w = 1 it has negative eigenvalues, which are taken for 0."""
    kernel, step, (unconditional, conditional) = guided_transition(mixture, kind, weight)
    values, vectors = torch.linalg.eigh(unconditional + weight * (conditional - unconditional))
    assert bool((values < 0).any()) == (weight > 1)
    mixed = vectors @ values.clamp(min=0).diag_embed() @ vectors.mT
    expected = kernel.lambda_sq * torch.eye(2, dtype=torch.float64) + kernel.c**2 * mixed
    assert_close(step, expected, rtol=1e-10, atol=1e-12)


@kinds
@cases
@pytest.mark.parametrize("clip_x0", [False, True])
def test_the_variational_bound_is_that_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, strategy: type[Exact], data_range: DataRange, clip_x0: bool
):
    denoiser = make_denoiser(mixture, data_range)
    x_0, times = mixture.sample(COUNT, torch.Generator().manual_seed(1)), EvenTrajectory().times(SCHEDULE, 6)
    found, dense = (
        VariationalBound(denoiser, strategy(denoiser, k), clip_x0=clip_x0).terms(x_0, times, noise())
        for k in (kind, full_of(kind))
    )
    assert found.isfinite().all()
    assert_close(found, dense, rtol=1e-8, atol=1e-8)  # a divergence is a difference of numbers near d


@kinds
@cases
def test_the_variance_profile_is_that_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, strategy: type[Exact], data_range: DataRange
):
    denoiser = make_denoiser(mixture, data_range)
    images = mixture.sample(COUNT, torch.Generator().manual_seed(1))
    found, dense = (
        variance_profile(denoiser, strategy(denoiser, k), images, 0.1, num_times=10) for k in (kind, full_of(kind))
    )
    assert list(found) == list(dense)
    for name, column in found.items():
        assert_close(column, dense[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@kinds
@cases
def test_the_trajectory_of_the_least_bound_is_that_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, strategy: type[Exact], data_range: DataRange
):
    denoiser = make_denoiser(mixture, data_range)
    x_0 = mixture.sample(COUNT, torch.Generator().manual_seed(1))
    found, dense = OptimalNLLTrajectory(num_candidates=10), OptimalNLLTrajectory(num_candidates=10)
    for trajectory, each in ((found, kind), (dense, full_of(kind))):
        trajectory.fit(denoiser, strategy(denoiser, each), Clean([x_0]))
    for num_steps in range(1, 8):
        assert torch.equal(found.times(SCHEDULE, num_steps), dense.times(SCHEDULE, num_steps))


@kinds
def test_a_step_models_covariance_is_found_behind_its_step(mixture: GaussianMixture, kind: Kind):
    """Guidance subtracts lambda^2 from a step, mixes what is left, and adds it again."""

    class Step(StepModel):
        def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
            return Exact(denoiser, self.kind).transition(kernel, denoiser, prediction)

    denoiser = make_denoiser(mixture, DataRange(), classes=True)
    guidance = ClassifierFreeGuidance(denoiser, len(mixture.weights), 0.4)
    at_s, at_t = levels(100, 300)
    kernel, labels = ReverseKernel.from_levels(at_s, at_t), torch.arange(COUNT) % len(mixture.weights)
    steps = []
    for strategy in (Step(denoiser), Exact(denoiser, kind)):
        strategy.kind = kind
        prediction = guidance.predict(denoiser, strategy, noisy(mixture, at_t), at_t, labels)
        steps.append(guidance.transition(kernel, denoiser, strategy, prediction).dense())
    assert_close(steps[0], steps[1], rtol=1e-10, atol=1e-12)


def test_each_operation_of_a_covariance_serves_a_consumer(mixture: GaussianMixture):
    """An abstract operation that nothing asks for is a burden on every kind to come."""
    denoiser = make_denoiser(mixture, DataRange(), classes=True)
    strategy, times = Exact(denoiser, Minimal), EvenTrajectory().times(SCHEDULE, 4)
    x_0 = mixture.sample(COUNT, torch.Generator().manual_seed(1))
    guidance, labels = ClassifierFreeGuidance(denoiser, len(mixture.weights), 0.4), torch.arange(COUNT) % 3
    Minimal.asked.clear()
    DDPMSampler(4).sample(denoiser, strategy, times, noise(), guidance=guidance, condition=labels)
    VariationalBound(denoiser, strategy).terms(x_0, times, noise())
    variance_profile(denoiser, strategy, x_0, 0.1, num_times=4)
    assert Covariance.__abstractmethods__ - Minimal.asked == set()


# kinds whose draws are not those of the matrix, though their law is


class Checked(Covariance):
    """A kind and its dense matrix, which do everything together and are compared at each operation."""

    def __init__(self, kind: Covariance, matrix: Covariance) -> None:
        self.kind, self.matrix = kind, matrix
        assert_close(kind.dense(), matrix.dense(), rtol=1e-9, atol=1e-12)

    @property
    def shape(self) -> torch.Size:
        return self.kind.shape

    def draw(self, noise: NoiseStream) -> Tensor:
        drawn = self.kind.draw(noise)
        sizes: list[tuple[int, ...]] = []
        self.kind.draw(Asked(sizes, drawn))
        count, columns = sum(math.prod(size) for size in sizes), []
        for unit in torch.eye(count, dtype=drawn.dtype).expand(len(drawn), -1, -1).unbind(1):
            parts = unit.split([math.prod(size) for size in sizes], 1)
            script = [part.reshape(-1, *size) for part, size in zip(parts, sizes, strict=True)]
            columns.append(self.kind.draw(Scripted(iter(script))))
        root = torch.stack(columns, -1)
        assert_close(root @ root.mT, self.matrix.dense(), rtol=1e-9, atol=1e-12)
        return drawn


class Asked(NoiseStream):
    """Writes down what shapes it is asked for."""

    def __init__(self, sizes: list[tuple[int, ...]], like: Tensor) -> None:
        self.sizes, self.like = sizes, like

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        size = tuple(self.like.shape[1:] if shape is None else shape)
        self.sizes.append(size)
        return self.like.new_zeros(len(self.like), *size)


def both(name: str) -> Callable[..., Any]:
    """An operation of `Checked`."""

    def operation(self: Checked, *arguments: Any) -> Any:
        split = [(each.kind, each.matrix) if isinstance(each, Checked) else (each, each) for each in arguments]
        found, dense = (
            getattr(held, name)(*(pair[i] for pair in split)) for i, held in enumerate((self.kind, self.matrix))
        )
        if isinstance(found, Covariance):
            return Checked(found, dense)
        assert_close(found, dense, rtol=1e-8, atol=1e-10)
        return found

    return operation


for name in Covariance.__abstractmethods__ - {"shape", "draw"} | {"inv_quad", "inv_trace", "trace", "dense"}:
    setattr(Checked, name, both(name))
Checked.__abstractmethods__ = frozenset()


def low_rank(matrix: Tensor) -> Covariance:
    values, vectors = torch.linalg.eigh(matrix)
    factor = (values[:, 1] - values[:, 0]).sqrt()[:, None] * vectors[:, :, 1]
    return LowRankCovariance(values[:, :1].expand(-1, 2), factor[:, None])


def cosines(matrix: Tensor) -> Covariance:
    basis = DCT((2,))
    vectors = basis.synthesise(torch.eye(2, dtype=torch.float64)).T
    return BasisCovariance(basis, (vectors.T @ matrix @ vectors).diagonal(dim1=1, dim2=2))


def kronecker(matrix: Tensor) -> Covariance:
    return KroneckerCovariance(matrix, torch.ones(len(matrix), dtype=torch.float64))


def matrix_free(matrix: Tensor) -> Covariance:
    held = full(matrix)
    return MatrixFreeCovariance(held.matvec, held.diagonal(), steps=2, variance=held.diagonal())


def total(matrix: Tensor) -> Covariance:
    return SumCovariance([cosines(matrix), diagonal(matrix / 2)])


def checked(kind: Kind) -> Kind:
    """A kind that is compared with its matrix."""
    return lambda matrix: Checked(kind(matrix), full(kind(matrix).dense()))


def draw_samples(denoiser: Denoiser, strategy: Exact, sampler: Sampler) -> Tensor:
    return sampler.sample(denoiser, strategy, EvenTrajectory().times(SCHEDULE, 4), noise())


def draw_guided(denoiser: Denoiser, strategy: Exact, weight: float) -> Tensor:
    guidance = ClassifierFreeGuidance(denoiser, 3, weight)
    labels, times = torch.arange(COUNT) % 3, EvenTrajectory().times(SCHEDULE, 3)
    return DDPMSampler(3).sample(denoiser, strategy, times, noise(), guidance=guidance, condition=labels)


def bound(denoiser: Denoiser, strategy: Exact) -> Tensor:
    x_0 = denoiser.network.mixture.sample(COUNT, torch.Generator().manual_seed(1))
    return VariationalBound(denoiser, strategy).terms(x_0, EvenTrajectory().times(SCHEDULE, 4), noise())


def profile(denoiser: Denoiser, strategy: Exact) -> Tensor:
    x_0 = denoiser.network.mixture.sample(COUNT, torch.Generator().manual_seed(1))
    return variance_profile(denoiser, strategy, x_0, 0.1, num_times=4)["mean"]


CONSUMERS: dict[str, Callable[[Denoiser, Exact], Tensor]] = {
    "ddpm": lambda *given: draw_samples(*given, DDPMSampler(4)),
    "ddpm_cut_hard": lambda *given: draw_samples(*given, DDPMSampler(4, cut=0.1)),
    "ddim": lambda *given: draw_samples(*given, DDIMSampler(4, eta=0.0)),
    "predictor_corrector": lambda *given: draw_samples(*given, PredictorCorrectorSampler(4)),
    "guided": lambda *given: draw_guided(*given, 0.4),
    "guided_beyond": lambda *given: draw_guided(*given, 3.0),
    "bound": bound,
    "profile": profile,
}


@pytest.mark.parametrize("kind", [low_rank, cosines, kronecker, matrix_free, total])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_makes_of_a_structured_kind_what_it_makes_of_the_matrix(
    mixture: GaussianMixture, kind: Kind, consumer: str
):
    """Each operation by itself, and the law of each draw, for a draw by other numbers is another draw."""
    if consumer == "guided_beyond" and kind is matrix_free:
        pytest.skip("products of an indefinite mixture stay as they are")
    denoiser = make_denoiser(mixture, RANGES["bound_at_work"], classes=True)
    assert CONSUMERS[consumer](denoiser, Exact(denoiser, checked(kind))).isfinite().all()


def test_structured_kinds_hold_the_correlations_of_the_mixture(mixture: GaussianMixture):
    """Or else the comparisons above compare less than they say."""
    at = levels(300)[0]
    matrix = mixture.posterior(noisy(mixture, at), at.alpha, at.sigma)[1]
    for kind in (low_rank, kronecker, matrix_free):
        assert_close(kind(matrix).dense(), matrix, rtol=1e-10, atol=1e-12)
    for kind in (cosines, total):
        assert float(kind(matrix).dense()[:, 0, 1].abs().mean()) > 0.3 * float(matrix[:, 0, 1].abs().mean())


# what is made of the full matrix itself


def calls_of(denoiser: Denoiser, run: Callable[[], Any]) -> tuple[list[Tensor], Any]:
    """Every x_t that the network is asked about while ``run`` runs, and what it returns."""
    asked: list[Tensor] = []
    hook = denoiser.network.register_forward_pre_hook(lambda module, arguments: asked.append(arguments[0].clone()))
    try:
        return asked, run()
    finally:
        hook.remove()


def congruent(matrix: Tensor, high: float) -> Tensor:
    """``S C S`` of section 2: variances within the bound, correlations kept."""
    variance = matrix.diagonal(dim1=1, dim2=2)
    scale = (high / variance).sqrt().clamp(max=1)
    return scale[:, :, None] * matrix * scale[:, None, :]


def law_of_a_step(
    sampler: Sampler, denoiser: Denoiser, strategy: Exact, times: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the first x_s from ``start [d]``, read off the answers to unit noise."""
    d = len(start)
    probes = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()
    script = iter([probes, *[torch.zeros_like(probes)] * len(times)])
    asked, _ = calls_of(
        denoiser,
        lambda: sampler.sample(denoiser, strategy, times, Scripted(script), start=start.expand(d + 1, d)),
    )
    assert_close(asked[0], start.expand(d + 1, d), rtol=0, atol=0)
    gains = asked[1][1:] - asked[1][0]  # row i answers unit noise i
    return asked[1][0], gains.T @ gains


@ranges
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cut", [None, 40.0], ids=["uncut", "cut"])
@pytest.mark.parametrize("nodes", [(1, 300), (1, 100, 300)], ids=["last stochastic step", "earlier step"])
def test_a_step_draws_from_the_moment_matched_gaussian(
    mixture: GaussianMixture, data_range: DataRange, eta: float, cut: float | None, nodes: tuple[int, ...]
):
    """``lambda^2 I + c^2 S C S``, and at the last stochastic step within the cut by the same kind of congruence."""
    denoiser = make_denoiser(mixture, data_range)
    times = torch.tensor(nodes, dtype=torch.float64) / 1000
    at_s, at_t = levels(*nodes[-2:])
    start = torch.tensor([0.4, -0.5], dtype=torch.float64)
    m, exact = mixture.posterior(start[None], at_t.alpha, at_t.sigma)
    sampler = DDIMSampler(len(nodes), eta=eta, clip_x0=False, cut=cut)
    mean, found = law_of_a_step(sampler, denoiser, Exact(denoiser, full), times, start)

    ratio = at_t.alpha / at_s.alpha
    lambda_sq = eta**2 * (at_t.sigma**2 - ratio**2 * at_s.sigma**2) * at_s.sigma**2 / at_t.sigma**2
    eps_scale = (at_s.sigma**2 - lambda_sq).sqrt()
    c = at_s.alpha - eps_scale * at_t.alpha / at_t.sigma
    bound = (data_range.high - data_range.low) ** 2 / 4
    expected = lambda_sq * torch.eye(2, dtype=torch.float64) + c**2 * congruent(exact, bound)
    if cut is not None and len(nodes) == 2:
        limit = (cut * data_range.grey_level * math.sqrt(math.pi / 2)) ** 2
        assert float(expected.diagonal(dim1=1, dim2=2).max()) > limit, "the cut has nothing to cut"
        expected = congruent(expected, limit)
    e = (start - at_t.alpha * m[0]) / at_t.sigma
    # sigma_s^2 - lambda^2 above cancels to 1e-4 of its size at eta = 1
    assert_close(mean, at_s.alpha * m[0] + eps_scale * e, rtol=1e-8, atol=1e-9)
    assert_close(found, expected[0], rtol=1e-8, atol=1e-11)
    assert abs(float(found[0, 1])) > 1e-5, "no correlation to lose"


@ranges
def test_a_transition_of_the_bound_is_the_divergence_of_two_gaussians(mixture: GaussianMixture, data_range: DataRange):
    denoiser = make_denoiser(mixture, data_range)
    nodes = (1, 200, 500, 1000)
    times = torch.tensor(nodes, dtype=torch.float64) / 1000
    x_0 = mixture.sample(COUNT, torch.Generator().manual_seed(1))
    bound = VariationalBound(denoiser, Exact(denoiser, full), clip_x0=False)
    asked, terms = calls_of(denoiser, lambda: bound.terms(x_0, times, noise()))
    at = levels(*nodes)
    limit, eye = (data_range.high - data_range.low) ** 2 / 4, torch.eye(2, dtype=torch.float64)
    found = terms[1:-1]  # decoder, transitions, prior
    assert found.shape == (3, COUNT)
    remaining = list(asked)
    for row, (at_s, at_t) in enumerate(pairwise(at)):
        beta = at_t.sigma**2 - (at_t.alpha / at_s.alpha) ** 2 * at_s.sigma**2
        beta_tilde, c = beta * at_s.sigma**2 / at_t.sigma**2, at_s.alpha * beta / at_t.sigma**2
        matches = []
        for x_t in remaining:  # whichever of the calls it was: exactly one has the time in question
            m, exact = mixture.posterior(x_t, at_t.alpha, at_t.sigma)
            sigma = beta_tilde * eye + c**2 * congruent(exact, limit)
            expected = kl_divergence(MultivariateNormal(c * x_0, beta_tilde * eye), MultivariateNormal(c * m, sigma))
            matches.append(bool(torch.isclose(found[row], expected, rtol=1e-6, atol=1e-8).all()))
        assert sum(matches) == 1, f"term {row + 1} is the divergence at none of the calls"
