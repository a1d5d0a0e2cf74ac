"""All parameterizations tell the same story on every path; networks are fed the time they expect; calls are counted."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.model import UNet
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.schedule import (
    CosineSchedule,
    FlowSchedule,
    FunctionSchedule,
    LinearSchedule,
    NoiseLevels,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
)

PATHS = [
    LinearSchedule(1000),
    CosineSchedule(17),
    FlowSchedule(1000),
    FlowSchedule(7),
    VESchedule(1000),
    FunctionSchedule(lambda t: 1 / (1 + t), lambda t: 20 * t),
]
PARAMETERIZATIONS = [Eps(), Score(), X0(), V(), Velocity(), EDM(), EDM(1.7)]


def fits(parameterization: Parameterization, path: NoiseSchedule) -> bool:
    if isinstance(parameterization, V):
        return isinstance(path, VPSchedule)
    return not (isinstance(parameterization, Eps | Score) and isinstance(path, FlowSchedule))


def name(value: object) -> str:
    return type(value).__name__ + str(getattr(value, "num_steps", getattr(value, "sigma_data", "")))


every_pair = pytest.mark.parametrize(
    ("parameterization", "path"),
    [(each, path) for each in PARAMETERIZATIONS for path in PATHS if fits(each, path)],
    ids=name,
)


class Answering(nn.Module):
    """Answers with what it was given, and remembers what it was fed."""

    data_shape, feature_channels = (2,), 3

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.features = torch.full((len(output), 3), 7.0)

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.x_t, self.time = x_t, time
        return self.output, self.features


def column(values: Tensor) -> Tensor:
    return values[:, None]


def published(parameterization: Parameterization, m: Tensor, e: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The target of clean data and noise, by the definition of its paper."""
    if isinstance(parameterization, Eps):
        return e
    if isinstance(parameterization, Score):  # arXiv:2011.13456, Eq. 29: grad log q(x_t | x_0), whose mean is the score
        return -e / sigma
    if isinstance(parameterization, X0):
        return m
    if isinstance(parameterization, V):  # arXiv:2202.00512, Sec. 4
        return alpha * e - sigma * m
    if isinstance(parameterization, Velocity):
        return e - m
    # arXiv:2206.00364, Eq. 7 and 8, in y = x_t / alpha = x_0 + s eps
    assert isinstance(parameterization, EDM)
    s, s_d = sigma / alpha, parameterization.sigma_data
    c_skip, c_out = s_d**2 / (s**2 + s_d**2), s * s_d / (s**2 + s_d**2).sqrt()
    return (m - c_skip * (m + s * e)) / c_out


@every_pair
def test_parameterizations_agree_on_the_oracle(
    mixture: GaussianMixture, parameterization: Parameterization, path: NoiseSchedule
):
    n = path.num_steps
    level = path.levels(torch.tensor([1, (n + 1) // 2, n - 1, n], dtype=torch.float64) / n)
    alpha, sigma = column(level.alpha), column(level.sigma)
    x_t = alpha * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7 * sigma
    m = mixture.posterior(x_t, level.alpha, level.sigma)[0]
    e = -sigma * mixture.score(x_t, level.alpha, level.sigma)
    output = published(parameterization, m, e, alpha, sigma)
    if isinstance(parameterization, EDM) and alpha[-1] == 0:
        output[-1] = m[-1] / parameterization.sigma_data  # the limit of s without end
    network = Answering(output)
    denoiser = Denoiser(network, path, parameterization)
    prediction = denoiser(x_t, level)
    # a division by alpha_N or sigma_1 (down to 1e-3) amplifies the rounding of either answer
    assert_close(prediction.x0, m, rtol=1e-8, atol=1e-9)
    assert_close(prediction.eps, e, rtol=1e-8, atol=1e-9)
    assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-9, atol=1e-9)
    assert_close(denoiser.target(m, e, level), output, rtol=1e-7, atol=1e-8)
    assert_close(denoiser.loss(prediction, 0.9 * output), 0.01 * (output**2).sum(1), rtol=1e-9, atol=0)
    assert prediction.features is network.features
    assert prediction.output is output
    assert prediction.x_t is x_t
    assert prediction.level is level

    c_skip, c_out = parameterization.c_skip(level), parameterization.c_out(level)
    assert c_skip.dtype == c_out.dtype == torch.float64
    assert_close(column(c_skip) * x_t + column(c_out) * output, m, rtol=1e-8, atol=1e-9)
    assert_close(parameterization.c_out_sq(level), c_out**2, rtol=1e-9, atol=0)
    fed = x_t
    if isinstance(parameterization, EDM):  # as EDM feeds x_t / alpha, times c_in of its Table 1
        fed = x_t / (sigma**2 + alpha**2 * parameterization.sigma_data**2).sqrt()
    assert_close(network.x_t, fed, rtol=1e-12, atol=0)


@every_pair
def test_the_oracle_answers_in_every_parameterization(
    mixture: GaussianMixture, parameterization: Parameterization, path: NoiseSchedule
):
    level = path.levels(torch.tensor([1, path.num_steps // 2, path.num_steps], dtype=torch.float64) / path.num_steps)
    network = OracleNetwork((2,), mixture, path, parameterization=parameterization)
    x_t = column(level.alpha) * 0.3 + column(level.sigma) * torch.tensor([[0.5, -1.2]], dtype=torch.float64)
    prediction = Denoiser(network, path, parameterization)(x_t, level)
    assert_close(prediction.x0, mixture.posterior(x_t, level.alpha, level.sigma)[0], rtol=1e-7, atol=1e-8)
    assert prediction.features.isfinite().all()


@every_pair
def test_one_time_for_the_batch_is_that_time_for_each(parameterization: Parameterization, path: NoiseSchedule):
    output, x_t = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(Answering(output), path, parameterization)
    one_level = path.levels(torch.tensor(0.3))
    one, each = denoiser(x_t, one_level), denoiser(x_t, path.levels(one_level.t.expand(4)))
    assert_close((one.x0, one.eps), (each.x0, each.eps), rtol=0, atol=0)
    assert one.x0.dtype == one.eps.dtype == torch.float32
    found = one_level.alpha.float() * one.x0 + one_level.sigma.float() * one.eps
    assert_close(found, x_t, rtol=1e-5, atol=1e-5)


@every_pair
def test_a_target_is_learned_where_the_noise_is_little(parameterization: Parameterization, path: NoiseSchedule):
    """In float32, where x_t - alpha x_0 has lost most of its digits: eps of an answer that is the target itself."""
    if isinstance(parameterization, X0):
        return  # there is no noise in its answer but by that difference
    level = path.levels(path.grid()[:1])
    x_0, eps = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = parameterization.target(x_0, eps, level).float()
    x_t = (level.alpha * x_0 + level.sigma * eps).float()
    assert_close(parameterization.eps(x_t, target, level).double(), eps, rtol=0, atol=2e-6)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
def test_the_mean_square_of_a_target_is_exact_or_a_draw(parameterization: Parameterization):
    target = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.ones(3, 2) if isinstance(parameterization, Eps) else target**2
    assert torch.equal(parameterization.expected_square(target), expected)


@pytest.mark.parametrize(("total", "offset"), [(1000, 0), (1000, -1), (50, 0), (50, -1), (4000, 0), (7, 2)])
def test_the_network_is_fed_its_own_time(total: int, offset: int):
    network = Answering(torch.zeros(3, 2))
    denoiser = Denoiser(network, CosineSchedule(total), time_offset=offset)
    n = torch.tensor([1, (total + 1) // 2, total])
    denoiser(torch.zeros(3, 2), denoiser.levels(n.double() / total))
    assert network.time.shape == (3,)
    assert network.time.dtype == torch.float32
    expected = (n + offset).double() * 1000 / total
    assert_close(network.time.double(), expected, rtol=1e-6, atol=1e-4)  # float32 of numbers up to 1000
    denoiser(torch.zeros(3, 2), denoiser.levels(torch.tensor(1 / total, dtype=torch.float64)))
    assert_close(network.time.double(), expected[:1].expand(3), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_diffusion_is_that_of_the_path(path: NoiseSchedule):
    denoiser = Denoiser(Answering(torch.zeros(3, 2)), path, X0())
    x_0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = path.levels(torch.tensor([1 / path.num_steps, 0.5, 1.0], dtype=torch.float64))
    alpha, sigma = column(level.alpha), column(level.sigma)
    assert_close(denoiser.diffuse(x_0, eps, level), alpha * x_0 + sigma * eps, rtol=1e-12, atol=0)
    assert_close(denoiser.diffuse(x_0, eps, level[1]), alpha[1] * x_0 + sigma[1] * eps, rtol=1e-12, atol=0)
    assert denoiser.diffuse(x_0.float(), eps.float(), level).dtype == torch.float32


def test_loss_and_shapes():
    denoiser = Denoiser(Answering(torch.zeros(3, 2, dtype=torch.float64)), LinearSchedule(1000))
    assert denoiser.data_shape == (2,)
    assert denoiser.feature_channels == 3
    assert denoiser.num_classes is None
    assert isinstance(denoiser.parameterization, Eps)
    assert denoiser.data_range == DataRange(-1.0, 1.0, 256)

    def predicted(output: Tensor) -> Prediction:
        return Prediction(output, denoiser.levels(torch.tensor(0.5)), 0 * output, 0 * output, output, output)

    eps, e = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(denoiser.loss(predicted(e), eps), torch.linalg.vector_norm(eps - e, dim=1) ** 2)
    images = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = denoiser.loss(predicted(images[0]), images[1])
    assert_close(loss, ((images[1] - images[0]) ** 2).flatten(1).sum(1), rtol=1e-5, atol=0)


def test_noise_variance_is_the_inverse_signal_to_noise_ratio(schedule: NoiseSchedule):
    level = schedule.levels(schedule.grid())
    assert level.noise_variance.dtype == torch.float64
    assert_close(level.noise_variance, 1 / level.alpha**2 - 1, rtol=1e-9, atol=1e-14)


def test_an_answer_in_half_precision_is_used_in_that_of_the_question():
    output = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    level = CosineSchedule(10).levels(torch.tensor(0.3))
    prediction = Denoiser(Answering(output), CosineSchedule(10))(torch.ones(3, 2), level)
    assert prediction.x0.dtype == prediction.eps.dtype == prediction.output.dtype == torch.float32
    assert_close(prediction.eps, output.float(), rtol=0, atol=0)


class Labelled(nn.Module):
    """Knows three classes, and remembers what it was told."""

    data_shape, feature_channels, num_classes = (2,), 2, 3

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.labels = labels
        return x_t, x_t


def test_labels_reach_the_network_and_none_is_the_null_label():
    denoiser = Denoiser(Labelled(), CosineSchedule(10))
    level = denoiser.levels(torch.tensor(0.5))
    assert denoiser.num_classes == 3
    for given, expected in ((torch.tensor([0, 3, 2]), [0, 3, 2]), (None, [3, 3, 3])):
        prediction = denoiser(torch.zeros(3, 2), level, given)
        assert denoiser.network.labels.tolist() == expected
        assert denoiser.network.labels.dtype == torch.int64
        assert prediction.condition is denoiser.network.labels


def test_labels_for_a_network_without_classes_are_refused():
    denoiser = Denoiser(Answering(torch.zeros(3, 2)), CosineSchedule(10))
    level = denoiser.levels(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"labels must be left out"):
        denoiser(torch.zeros(3, 2), level, torch.zeros(3, dtype=torch.int64))
    assert denoiser(torch.zeros(3, 2), level).condition is None
    assert denoiser.cost.nfe == 3  # what is refused costs nothing


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V(), EDM()], ids=name)
def test_products_with_the_jacobian_and_what_they_cost(
    mixture: GaussianMixture, parameterization: Parameterization, classes: int | None
):
    """Beside the forward pass that each repeats, a product from the right counts 1 and one from the left 2."""
    path = CosineSchedule(100)
    network = OracleNetwork((2,), mixture, path, num_classes=classes, parameterization=parameterization)
    denoiser = Denoiser(network, path, parameterization).eval()
    x_t, u, v = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = path.levels(torch.linspace(0.2, 0.9, 5))
    labels = None if classes is None else torch.tensor([0, 1, 2, 3, 3])
    with torch.no_grad():
        prediction = denoiser(x_t, level, labels)
        assert (denoiser.cost.nfe, denoiser.cost.ne) == (5, 5)
        right = denoiser.jvp(prediction, v)
        assert (denoiser.cost.nfe, denoiser.cost.ne) == (10, 15)
        left = denoiser.vjp(prediction, u)
        assert (denoiser.cost.nfe, denoiser.cost.ne) == (15, 30)
    assert not left.requires_grad
    # m is the oracle's own: its Jacobian is alpha / sigma^2 times the covariance of x_0
    covariance = mixture.posterior(x_t, level.alpha, level.sigma, labels)[1]
    jacobian = (level.alpha / level.sigma**2)[:, None, None] * covariance
    assert_close(right, torch.einsum("bij,bj->bi", jacobian, v), rtol=1e-6, atol=1e-8)
    assert_close(left, torch.einsum("bij,bi->bj", jacobian, u), rtol=1e-6, atol=1e-8)
    denoiser.cost.reset()
    assert (denoiser.cost.nfe, denoiser.cost.ne) == (0, 0)


def test_products_pass_through_attention():
    """``u (J v) = (u J) v`` for a U-Net with attention, in float32."""
    torch.manual_seed(0)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, attention_resolutions=(4,)), CosineSchedule(100)).eval()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    x_t, u, v = torch.randn(3, 2, 1, 8, 8)
    with torch.no_grad():
        prediction = denoiser(x_t, denoiser.levels(torch.tensor(0.5)))
        right, left = denoiser.jvp(prediction, v), denoiser.vjp(prediction, u)
    assert right.abs().max() > 0.1
    assert_close((u * right).flatten(1).sum(1), (left * v).flatten(1).sum(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", [FlowSchedule(10), FlowSchedule(1000)], ids=name)
def test_noise_is_no_answer_where_no_signal_is_left(path: NoiseSchedule):
    with pytest.raises(ValueError, match=r"parameterization must .*\(got eps\).*parameterization=velocity") as refusal:
        Denoiser(Answering(torch.zeros(1, 2)), path)
    assert "=v " not in str(refusal.value)  # which is refused on this path, too


@pytest.mark.parametrize("path", [FlowSchedule(10), VESchedule(10)], ids=name)
def test_v_needs_a_path_that_preserves_variance(path: NoiseSchedule):
    with pytest.raises(ValueError, match=r"parameterization must .*\(got v, .*parameterization=velocity"):
        Denoiser(Answering(torch.zeros(1, 2)), path, V())


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, float("inf"), float("nan")])
def test_edm_needs_a_deviation_of_the_data(sigma_data: float):
    with pytest.raises(ValueError, match=rf"parameterization\.sigma_data must be .*\(got {sigma_data}\)"):
        EDM(sigma_data)


def test_levels_are_those_of_the_schedule():
    denoiser = Denoiser(Answering(torch.zeros(1, 2)), LinearSchedule(100))
    t = torch.tensor([[0.25, 0.5]])
    level = denoiser.levels(t)
    assert isinstance(level, NoiseLevels)
    assert level.t.dtype == level.alpha.dtype == torch.float64
    assert_close((level.alpha, level.sigma), (denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)))
