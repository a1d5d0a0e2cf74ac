"""Structured strategies against closed forms: Gaussian fields and mixtures, whose C is known."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from test_every_path import Constant, at_one_point
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import DCT, BasisCovariance, Covariance, FullCovariance, LowRankCovariance, MatrixFreeCovariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood import VariationalBound
from optcov.model import UNet
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, V
from optcov.sampler import NoiseStream
from optcov.schedule import FlowSchedule, LinearSchedule, VPSDESchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed, Trained
from optcov.variance.data_cov import DataCovariance
from optcov.variance.dct import Spectrum
from optcov.variance.dct_head import SpectrumHead
from optcov.variance.jacobian import CorrectedJacobian, Jacobian
from optcov.variance.kdct import KroneckerDCT
from optcov.variance.lgs import LGS, CorrectedLGS
from optcov.variance.low_rank import LowRank
from optcov.variance.nll import NLL
from optcov.variance.ocm import OCM, CorrectedOCM

SCHEDULE = LinearSchedule(1000)
DIM = 12
UNBOUNDED = DataRange(None, None, None)


def vectors_of(basis: DCT) -> Tensor:
    return basis.synthesise(torch.eye(DIM, dtype=torch.float64)).T


@cache
def field() -> tuple[GaussianMixture, Tensor]:
    """A Gaussian field whose covariance every kind can hold: three smooth cosines above white noise; its spectrum."""
    spectrum = torch.full((DIM,), 0.02, dtype=torch.float64)
    spectrum[:3] += torch.tensor([0.5, 0.3, 0.1])
    vectors = vectors_of(DCT((DIM,)))
    return GaussianMixture(torch.full((1, DIM), 0.2), (vectors * spectrum @ vectors.T)[None]), spectrum


def oracle(mixture: GaussianMixture, schedule: VPSDESchedule | LinearSchedule = SCHEDULE) -> Denoiser:
    return Denoiser(OracleNetwork((mixture.dim,), mixture, schedule), schedule, data_range=UNBOUNDED).eval()


def spectral(denoiser: Denoiser, prediction: Prediction) -> Covariance:
    """True parameters of the kinds that are diagonal in cosines."""
    level, spectrum = prediction.level, field()[1]
    variance = spectrum * level.sigma**2 / (level.sigma**2 + level.alpha**2 * spectrum)
    return BasisCovariance(DCT((DIM,)), variance.expand_as(prediction.x_t))


def directions(denoiser: Denoiser, prediction: Prediction) -> Covariance:
    """True parameters of a diagonal and three directions."""
    variance = spectral(denoiser, prediction).variance
    factor = (variance[:, :3] - variance[:, 3:4]).sqrt()[..., None] * vectors_of(DCT((DIM,))).T[:3]
    return LowRankCovariance(variance[:, 3:4].expand_as(variance), factor)


def calibrated(denoiser: Denoiser) -> DataCovariance:
    strategy, (mixture, _) = DataCovariance(denoiser), field()
    vectors = mixture.axes[0] * (DIM * mixture.variances[0]).sqrt()  # data with exactly this covariance
    strategy.calibrate(denoiser, [torch.cat([vectors.T, -vectors.T]) * math.sqrt((2 * DIM - 1) / (2 * DIM)) + 0.2])
    return strategy


EXACT: dict[str, Callable[[Denoiser], Callable[[Denoiser, Prediction], Covariance]]] = {
    "basis": lambda denoiser: spectral,
    "low rank": lambda denoiser: directions,
    "jacobian": lambda denoiser: Jacobian(denoiser).covariance,
    "lgs of all steps": lambda denoiser: LGS(denoiser, steps=DIM).covariance,
    "lgs of the field's rank": lambda denoiser: LGS(denoiser, steps=4).covariance,
    "data_cov": lambda denoiser: calibrated(denoiser).covariance,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_keeps_the_law_of_a_gaussian_field(name: str, eta: float):
    """Mean and covariance of x_s from x_t = q(x_t), over a stride of 0.9: what K = 2 steps do before the last mean."""
    mixture, _ = field()
    denoiser = oracle(mixture)
    s, t = (SCHEDULE.levels(torch.tensor(time, dtype=torch.float64)) for time in (0.05, 0.95))
    kernel = ReverseKernel.from_levels(s, t, eta)
    law = torch.stack([mixture.covariance() * level.alpha**2 + level.sigma**2 * torch.eye(DIM) for level in (s, t)])
    prediction = denoiser(torch.cat([torch.zeros(1, DIM), torch.eye(DIM)]).double(), t)
    step = kernel.mean(prediction.x0, prediction.eps)
    gain = (step[1:] - step[0]).T
    numbers = torch.eye(2 * DIM, dtype=torch.float64)  # at one point, one draw for each number that it may take
    prediction = denoiser(torch.zeros(1, DIM, dtype=torch.float64).expand(2 * DIM, -1), t)
    root = kernel.covariance(EXACT[name](denoiser)(denoiser, prediction)).draw(Given(numbers))
    found = gain @ law[1] @ gain.T + root.T @ root
    assert_close(found, law[0], rtol=1e-8, atol=1e-10)
    assert_close(step[0] + gain @ (t.alpha * mixture.mean()), s.alpha * mixture.mean(), rtol=1e-8, atol=1e-10)


class Given(NoiseStream):
    """Known numbers ``[B, n]``, one after another."""

    def __init__(self, z: Tensor) -> None:
        self.z, self.taken = z, 0

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        shape = (DIM,) if shape is None else shape
        start, self.taken = self.taken, self.taken + math.prod(shape)
        return self.z[:, start : self.taken].reshape(-1, *shape)


def noisy(mixture: GaussianMixture, denoiser: Denoiser, count: int = 6) -> Prediction:
    """Answers at several times, in double precision."""
    g = torch.Generator().manual_seed(3)
    x_0, t = mixture.sample(count, g), torch.linspace(0.02, 0.9, count, dtype=torch.float64)
    level = denoiser.levels(t)
    with torch.no_grad():
        return denoiser(denoiser.diffuse(x_0, torch.randn(x_0.shape, generator=g).double(), level), level)


@torch.no_grad()
def test_the_jacobian_of_the_oracle_is_its_covariance(mixture: GaussianMixture):
    denoiser = oracle(mixture)
    prediction = noisy(mixture, denoiser)
    level = prediction.level
    exact = mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1]
    found = Jacobian(denoiser).covariance(denoiser, prediction)
    assert_close(found.dense(), exact, rtol=1e-8, atol=1e-10)
    assert float(found.indefiniteness().max()) < 1e-12
    lgs = LGS(denoiser, steps=2).covariance(denoiser, prediction)
    v = torch.randn(prediction.x_t.shape, generator=torch.Generator().manual_seed(0)).double()
    assert_close(lgs.dense(), exact, rtol=1e-8, atol=1e-10)
    assert_close(lgs.solve(v), torch.linalg.solve(exact, v), rtol=1e-7, atol=1e-9)
    assert_close(lgs.logdet(), torch.linalg.slogdet(exact).logabsdet, rtol=1e-8, atol=1e-8)


def test_products_are_counted_and_differences_cost_one_call_each(mixture: GaussianMixture):
    denoiser = oracle(mixture)
    prediction = noisy(mixture, denoiser)
    drawn, costs = [], []
    for difference in (None, 0.01):
        denoiser.cost.reset()
        covariance = LGS(denoiser, steps=2, difference=difference).bounded_covariance(denoiser, prediction)
        drawn.append(covariance.draw(NoiseStream(0, range(6), (2,), dtype=torch.float64)))
        costs.append((denoiser.cost.nfe / 6, denoiser.cost.ne / 6))
    assert costs == [(2, 4), (2, 2)]
    assert_close(drawn[0], drawn[1], rtol=0.02, atol=0.002)


class Exact(Closed):
    """The oracle's C, or its products in a few Lanczos steps."""

    def __init__(self, denoiser: Denoiser, steps: int | None) -> None:
        super().__init__(denoiser)
        self.steps = steps

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, x_t = prediction.level, prediction.x_t
        full = FullCovariance(denoiser.network.mixture.posterior(x_t, level.alpha, level.sigma)[1], (DIM,))
        return full if self.steps is None else MatrixFreeCovariance(full.matvec, x_t, self.steps, full.diagonal())


def test_three_lanczos_steps_are_near_the_full_matrix_in_likelihood():
    """Of the bound's transitions, within 0.01 nats a dimension, on a mixture of fields."""
    first, spectrum = field()
    vectors = vectors_of(DCT((DIM,)))
    other = vectors * spectrum.roll(2) @ vectors.T
    mixture = GaussianMixture(
        torch.stack([first.means[0], -first.means[0]]), torch.stack([first.covariances[0], other]), [0.6, 0.4]
    )
    denoiser = Denoiser(OracleNetwork((DIM,), mixture, SCHEDULE), SCHEDULE).eval()
    x_0, times = mixture.sample(16, torch.Generator().manual_seed(1)), EvenTrajectory().times(SCHEDULE, 10)
    full, few = (
        VariationalBound(denoiser, Exact(denoiser, steps)).terms(
            x_0, times, NoiseStream(0, range(16), (DIM,), dtype=torch.float64)
        )
        for steps in (None, 3)
    )
    assert abs(float((few - full).sum(0).mean())) < 0.01 * DIM
    assert float((few - full).abs().max()) > 1e-6  # they are not the same thing


# strategies that are trained: at the least of their own loss they say C


class Zero(nn.Module):
    """A head that says one number for each output, whatever it reads."""

    def __init__(self, feature_channels: int, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(0.1 * torch.ones(data_shape, dtype=torch.float64))

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        return self.value.expand(len(features), *self.value.shape)


def exact_denoiser(mixture: GaussianMixture, parameterization: type[Parameterization]) -> Denoiser:
    schedule = VPSDESchedule(5)
    network = OracleNetwork((2,), mixture, schedule, parameterization=parameterization())
    return Denoiser(network, schedule, parameterization()).eval()


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("parameterization", [Eps, X0, V, EDM])
def test_likelihood_is_least_at_the_covariance_in_every_unit(
    mixture: GaussianMixture, parameterization: type[Parameterization], n: int
):
    denoiser = exact_denoiser(mixture, parameterization)
    many, target, one, variance = at_one_point(mixture, denoiser, n, 10_000)
    strategy = NLL(denoiser, Zero)
    descend(strategy, denoiser, many, target)
    squares = denoiser.parameterization.c_out_sq(one.level) * (target - one.output) ** 2
    found = strategy.covariance(denoiser, one).diagonal()
    assert_close(found[0], squares.mean(0), rtol=1e-4, atol=0)
    assert ((found - variance).abs() < 5 * squares.std(0) / 100).all()


def descend(strategy: Trained, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> None:
    """Fit by L-BFGS, in double precision."""
    strategy.double()
    optimizer = torch.optim.LBFGS(
        strategy.parameters(), max_iter=100, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = strategy.loss(denoiser, prediction, target).mean()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("jacobian", [False, True])
def test_a_low_rank_strategy_finds_the_correlations(mixture: GaussianMixture, jacobian: bool):
    """By likelihood, and by products with the Jacobian, whose least is exact."""
    denoiser = exact_denoiser(mixture, Eps)
    many, target, one, _ = at_one_point(mixture, denoiser, 3, 64 if jacobian else 4000)
    torch.manual_seed(0)
    weights = {"nll_weight": 0.0, "jacobian_weight": 1e3} if jacobian else {}
    strategy = LowRank(denoiser, Zero, rank=1, **weights)
    if jacobian:
        probes = torch.randn(64, 2, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda like: probes)
            descend(strategy, denoiser, many, target)
    else:
        descend(strategy, denoiser, many, target)
    exact = mixture.posterior(one.x_t, one.level.alpha, one.level.sigma)[1]
    found = strategy.covariance(denoiser, one).dense()
    if jacobian:
        assert_close(found, exact, rtol=1e-4, atol=1e-6)
    else:
        u = denoiser.parameterization.c_out(one.level) * (target - one.output)
        assert_close(found[0], u.T @ u / len(u), rtol=1e-4, atol=1e-6)
        assert_close(found, exact, rtol=0, atol=0.08 * float(exact.diagonal(dim1=1, dim2=2).max()))  # of 4000 draws
    assert abs(float(exact[0, 0, 1])) > 0.004


@pytest.mark.parametrize("kind", [SpectrumHead, KroneckerDCT])
def test_spectra_find_the_variances_of_cosines(mixture: GaussianMixture, kind: type):
    """And a diagonal with one finds those of the pixels, too."""
    denoiser = exact_denoiser(mixture, Eps)
    many, target, one, pixels = at_one_point(mixture, denoiser, 3, 10_000)
    torch.manual_seed(0)
    strategy = kind(denoiser, Zero, modes=1)
    descend(strategy, denoiser, many, target)
    exact = mixture.posterior(one.x_t, one.level.alpha, one.level.sigma)[1]
    vectors = DCT((2,)).synthesise(torch.eye(2, dtype=torch.float64)).T
    found = strategy.covariance(denoiser, one).dense()
    if kind is SpectrumHead:
        spectrum, wanted = ((vectors.T @ matrix @ vectors).diagonal(dim1=1, dim2=2) for matrix in (found, exact))
        assert_close(spectrum, wanted, rtol=0.06, atol=0)
    else:  # of two channels, any matrix is one of the channels
        assert_close(found.diagonal(dim1=1, dim2=2), pixels, rtol=0.06, atol=0)


def image_denoiser() -> tuple[Denoiser, Prediction, Tensor]:
    """A network of small images in double precision, answers at two times, and targets."""
    torch.manual_seed(0)
    denoiser = Denoiser(UNet((3, 2, 2), channels=8, channel_mult=[1], attention_resolutions=[]).double(), SCHEDULE)
    x_t, target = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        return denoiser, denoiser(x_t, SCHEDULE.levels(torch.tensor([0.002, 0.9], dtype=torch.float64))), target


def test_a_diagonal_and_a_spectrum_are_fitted_to_pixels_and_coefficients():
    """The loss is the NLL of each kind of number by itself, with the variances that C gives it."""
    denoiser, prediction, target = image_denoiser()
    strategy = KroneckerDCT(denoiser, Zero, modes=2).double()
    for parameter in strategy.parameters():
        nn.init.normal_(parameter, std=0.5)
    c_out_sq = denoiser.parameterization.c_out_sq(prediction.level)
    u = c_out_sq.sqrt()[:, None] * (target - prediction.output).flatten(1)
    rotation = torch.linalg.matrix_exp(strategy.rotation - strategy.rotation.T)
    basis, dense = DCT((3, 2, 2), rotation), strategy.covariance(denoiser, prediction).dense()
    vectors = basis.synthesise(torch.eye(12, dtype=torch.float64).reshape(12, 3, 2, 2)).flatten(1).T
    expected = 0
    for axes in (torch.eye(12, dtype=torch.float64), vectors):
        variance = (axes.T @ dense @ axes).diagonal(dim1=1, dim2=2)
        expected = expected + ((u @ axes) ** 2 / variance + variance.log()).sum(1) / 2
    scale = 0.25 * prediction.level.sigma**2 / (prediction.level.sigma**2 + 0.25 * prediction.level.alpha**2)
    found = strategy.loss(denoiser, prediction, target) + 12 * scale.log()  # in units of C_0, and of both kinds
    assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_directions_fade_where_little_noise_leaves_a_white_covariance():
    denoiser, prediction, _ = image_denoiser()
    strategy = LowRank(denoiser, lambda *shapes: Zero(*shapes).requires_grad_(False), rank=4).double()
    strategy.head.value.zero_()
    dense = strategy.covariance(denoiser, prediction).dense()
    beside = (dense - dense.diagonal(dim1=1, dim2=2).diag_embed()).abs().amax((1, 2)) / dense.amax((1, 2))
    assert float(beside[0]) < 1e-5
    assert float(beside[1]) > 1e-3


def test_a_measured_spectrum_is_that_of_the_field():
    mixture, spectrum = field()
    denoiser = oracle(mixture, VPSDESchedule(20))
    for imperfect in (True, False):
        strategy = Spectrum(denoiser, imperfect_mean=imperfect)
        strategy.calibrate(denoiser, [mixture.sample(2000, torch.Generator().manual_seed(0))])
        prediction = noisy(mixture, denoiser, 3)
        level = denoiser.levels(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64))
        prediction = denoiser(prediction.x_t, level)
        found = strategy.covariance(denoiser, prediction).variance
        wanted = (
            spectrum * level.sigma[:, None] ** 2 / (level.alpha[:, None] ** 2 * spectrum + level.sigma[:, None] ** 2)
        )
        error = denoiser.parameterization.c_out_sq(level)[:, None] * strategy.eps_variance_se[[2, 10, 20]]
        assert ((found - wanted).abs() < 5 * error).all()
        if imperfect:  # a perfect mean's is a difference of large numbers where there is little signal
            assert (error < 0.05 * wanted).all(), "the comparison means little"


class Biased(nn.Module):
    """A network whose answer is off by a constant."""

    def __init__(self, network: OracleNetwork) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels = network, (2,), 256

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, features = self.network(x_t, time)
        return output + torch.tensor([0.3, -0.2], dtype=torch.float64), features


@pytest.mark.parametrize("kind", [OCM, CorrectedOCM, CorrectedJacobian, CorrectedLGS])
def test_a_jacobian_knows_no_bias_and_the_correction_does(mixture: GaussianMixture, kind: type):
    """``diag C_J`` is that of the exact mean, whatever constant is added to it; the correction gives its square."""
    exact = exact_denoiser(mixture, Eps)
    denoiser = Denoiser(Biased(exact.network), exact.schedule).eval()
    many, target, one, variance = at_one_point(mixture, denoiser, 3, 10_000)
    torch.manual_seed(0)
    strategy = kind(denoiser, Zero, **({"steps": 2} if kind is CorrectedLGS else {}))
    with pytest.MonkeyPatch.context() as patch:  # all pairs of signs alike
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).repeat(5000, 1)
        patch.setattr(torch, "randint_like", lambda like, high: (signs + 1) / 2)
        descend(strategy, denoiser, many, target)
    r = denoiser.parameterization.c_out_sq(one.level)
    bias = r * torch.tensor([0.09, 0.04], dtype=torch.float64)
    found = strategy.covariance(denoiser, one)
    if kind is OCM:
        assert_close(found.diagonal(), variance, rtol=1e-5, atol=0)
        return
    assert_close(found.diagonal(), variance + bias, rtol=0.06, atol=0)
    if kind is not CorrectedOCM:
        matrix = mixture.posterior(one.x_t, one.level.alpha, one.level.sigma)[1]
        assert_close(found.dense()[:, 0, 1], matrix[:, 0, 1], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_strategies_take_gradients_while_a_sampler_has_them_off(mixture: GaussianMixture):
    network = UNet((1, 4, 4), channels=8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    denoiser = Denoiser(network.double(), SCHEDULE).eval()
    prediction = denoiser(torch.ones(2, 1, 4, 4).double(), SCHEDULE.levels(torch.tensor(0.5)))
    full = Jacobian(denoiser).covariance(denoiser, prediction)
    assert isinstance(full, FullCovariance)
    assert float(full.indefiniteness().max()) > 0.01  # no covariance, which is told
    v = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    near = LGS(denoiser, difference=1e-6).covariance(denoiser, prediction).matvec(v)
    assert_close(LGS(denoiser).covariance(denoiser, prediction).matvec(v), near, rtol=1e-3, atol=1e-4)


class Opaque(nn.Module):
    """A network behind numpy."""

    data_shape, feature_channels = (2,), 2

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(x_t.numpy() / 2), x_t


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: LowRank(d, Constant, rank=3), "var.rank must be at least 1 and at most the dimension 2"),
        (lambda d: LowRank(d, Constant, rank=1, nll_weight=0.0), "var.nll_weight and var.jacobian_weight must not"),
        (lambda d: LGS(d, steps=3), "var.steps must be at least 1 and at most the dimension 2"),
        (lambda d: LGS(d, steps=1, difference=0.0), "var.difference must be above 0"),
        (lambda d: SpectrumHead(d, Constant, modes=0), "var.modes must be at least 1"),
        (lambda d: KroneckerDCT(d, Constant, modes=0), "var.modes must be at least 1"),
        (lambda d: DataCovariance(d, num_images=1), "var.num_images must be at least 2"),
        (lambda d: Jacobian(Denoiser(UNet((3, 32, 32), channels=8), SCHEDULE)), "at most 1024 dimensions"),
        (lambda d: DataCovariance(Denoiser(UNet((3, 64, 64), channels=8), SCHEDULE)), "at most 4096 dimensions"),
        (lambda d: LGS(Denoiser(d.network, FlowSchedule(10), X0()), steps=1), "schedule must leave some signal"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(mixture: GaussianMixture, make: Callable[[Denoiser], object], message: str):
    with pytest.raises(ValueError, match=message):
        make(oracle(mixture))


def test_a_network_without_gradient_is_told_what_works_instead():
    denoiser = Denoiser(Opaque(), SCHEDULE)
    prediction = denoiser(torch.ones(1, 2), SCHEDULE.levels(torch.tensor(0.5)))
    with pytest.raises(ValueError, match=r"network must be differentiable.*var=nll, low_rank or npr_dpm"):
        Jacobian(denoiser).covariance(denoiser, prediction)
    assert (
        LGS(denoiser, steps=1, difference=0.01)
        .covariance(denoiser, prediction)
        .matvec(torch.ones(1, 2))
        .isfinite()
        .all()
    )
