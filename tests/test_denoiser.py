"""The three parameterizations tell the same story, and networks are fed the time they expect."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser, Prediction
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0, Eps, Parameterization, Score, V, Velocity
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule


class Answering(nn.Module):
    """Answers with what it was given, and remembers the times it was fed."""

    data_shape, feature_channels = (2,), 3

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.features = torch.full((len(output), 3), 7.0)

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.time = time
        return self.output, self.features


TARGETS = {"eps": Eps(), "x0": X0(), "v": V(), "velocity": Velocity(), "score": Score()}


@pytest.mark.parametrize("name", TARGETS)
def test_parameterizations_agree_on_the_oracle(schedule: NoiseSchedule, mixture: GaussianMixture, name: str):
    n = schedule.num_steps
    t = torch.tensor([1, (n + 1) // 2, n], dtype=torch.float64) / n
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m = mixture.posterior(x_t, alpha[:, 0], sigma[:, 0])[0]
    e = -sigma * mixture.score(x_t, alpha[:, 0], sigma[:, 0])
    output = {"eps": e, "x0": m, "v": alpha * e - sigma * m, "velocity": e - m, "score": -e / sigma}[name]
    network = Answering(output)
    prediction = Denoiser(network, schedule, TARGETS[name])(x_t, schedule.levels(t))
    # a division by alpha_N or sigma_1 (down to 1e-3) amplifies the rounding of either answer
    assert_close(prediction.x0, m, rtol=1e-8, atol=1e-9)
    assert_close(prediction.eps, e, rtol=1e-8, atol=1e-9)
    assert prediction.features is network.features


@pytest.mark.parametrize("parameterization", TARGETS.values(), ids=TARGETS)
def test_one_time_for_the_batch_is_that_time_for_each(parameterization: Parameterization):
    schedule = CosineSchedule(10)
    output, x_t = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(Answering(output), schedule, parameterization)
    t = torch.tensor(0.3, dtype=torch.float64)
    one, each = denoiser(x_t, denoiser.levels(t)), denoiser(x_t, denoiser.levels(t.expand(4)))
    assert_close((one.x0, one.eps), (each.x0, each.eps), rtol=0, atol=0)
    assert one.x0.dtype == one.eps.dtype == torch.float32
    assert_close(schedule.alpha(t).float() * one.x0 + schedule.sigma(t).float() * one.eps, x_t, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("total", "offset"), [(1000, 0), (1000, -1), (50, 0), (50, -1), (4000, 0), (7, 2)])
def test_the_network_is_fed_its_own_time(total: int, offset: int):
    network = Answering(torch.zeros(3, 2))
    denoiser = Denoiser(network, CosineSchedule(total), time_offset=offset)
    n = torch.tensor([1, (total + 1) // 2, total])
    denoiser(torch.zeros(3, 2), denoiser.levels(n.double() / total))
    assert network.time.shape == (3,)
    expected = (n + offset).double() * 1000 / total
    assert_close(network.time.double(), expected, rtol=1e-6, atol=1e-4)  # float32 of numbers up to 1000
    denoiser(torch.zeros(3, 2), denoiser.levels(torch.tensor(1 / total, dtype=torch.float64)))
    assert_close(network.time.double(), expected[:1].expand(3), rtol=1e-6, atol=1e-4)


def test_diffuse_loss_and_shapes():
    schedule = LinearSchedule(1000)
    network = Answering(torch.zeros(3, 2, dtype=torch.float64))
    denoiser = Denoiser(network, schedule)
    assert denoiser.data_shape == (2,)
    assert denoiser.feature_channels == 3
    x_0, eps, e = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    alpha = schedule.alpha(t)[:, None]
    assert_close(
        denoiser.diffuse(x_0, eps, denoiser.levels(t)), alpha * x_0 + (1 - alpha**2).sqrt() * eps, rtol=1e-9, atol=1e-10
    )
    assert_close(denoiser.diffuse(x_0, eps, denoiser.levels(t[1])), alpha[1] * x_0 + (1 - alpha[1] ** 2).sqrt() * eps)
    level = denoiser.levels(t)
    loss = denoiser.loss(Prediction(x_0, level, x_0, e, e, e), denoiser.target(x_0, eps, level))
    assert_close(loss, torch.linalg.vector_norm(eps - e, dim=1) ** 2)
    images = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = denoiser.loss(Prediction(images[0], level, *[images[0]] * 4), images[1])
    assert_close(loss, ((images[1] - images[0]) ** 2).flatten(1).sum(1), rtol=1e-5, atol=0)


def test_noise_variance_is_the_inverse_signal_to_noise_ratio(schedule: NoiseSchedule):
    t = schedule.grid()
    alpha_sq = schedule.alpha(t) ** 2
    assert schedule.levels(t).noise_variance.dtype == torch.float64
    assert_close(schedule.levels(t).noise_variance, 1 / alpha_sq - 1, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("parameterization", [Eps(), Score()])
def test_targets_that_leave_x0_open_without_signal_are_refused(parameterization: Parameterization):
    with pytest.raises(ValueError, match="parameterization must be one that knows x_0 at t = 1"):
        Denoiser(Answering(torch.zeros(1, 2)), FlowSchedule(10), parameterization)


def test_v_is_refused_where_variance_is_not_preserved():
    with pytest.raises(ValueError, match=r"parameterization must be .* on FlowSchedule \(got v"):
        Denoiser(Answering(torch.zeros(1, 2)), FlowSchedule(10), V())


def test_labels_are_refused_by_a_network_without_classes():
    denoiser = Denoiser(Answering(torch.zeros(2, 2)), CosineSchedule(10))
    with pytest.raises(ValueError, match="labels must be left out"):
        denoiser(torch.zeros(2, 2), denoiser.levels(torch.tensor(0.5)), torch.zeros(2, dtype=torch.long))
