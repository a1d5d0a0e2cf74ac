"""Improved DDPM's learned range against the two ends of the range and independently written divergences."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.schedule import LinearSchedule, NoiseSchedule, VPSDESchedule
from optcov.variance.base import CovarianceModel, StepModel, Trained
from optcov.variance.iddpm import LearnedRange

SCHEDULE = LinearSchedule(50)


class ConstantHead(nn.Module):
    """The same output everywhere."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        return self.value.expand(len(features), -1)


def learned_range(denoiser, value) -> LearnedRange:
    tensor = torch.as_tensor(value, dtype=torch.float64).expand(2).clone()
    return LearnedRange(denoiser, lambda channels, shape: ConstantHead(tensor))


def ends(schedule: NoiseSchedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """beta_tilde and beta of the step."""
    alpha_sq_s, alpha_sq_t = schedule.alpha(s) ** 2, schedule.alpha(t) ** 2
    beta = 1 - alpha_sq_t / alpha_sq_s
    return beta * (1 - alpha_sq_s) / (1 - alpha_sq_t), beta


@pytest.mark.parametrize("pair", [(1, 2), (1, 50), (49, 50), (10, 30)])
def test_step_interpolates_in_the_logarithm(mixture, make_oracle, pair: tuple[int, int]):
    denoiser = make_oracle(mixture, SCHEDULE)
    s, t = torch.tensor(pair, dtype=torch.float64) / 50
    beta_tilde, beta = ends(SCHEDULE, s, t)
    kernel = ReverseKernel.from_levels(SCHEDULE.levels(s), SCHEDULE.levels(t))
    x_t = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    prediction = denoiser(x_t, SCHEDULE.levels(t))
    for output, variance in [(-1, beta_tilde), (0, (beta * beta_tilde).sqrt()), (1, beta), (0.5, None)]:
        variance = beta**0.75 * beta_tilde**0.25 if variance is None else variance
        step = learned_range(denoiser, output).transition(kernel, denoiser, prediction)
        assert_close(step.diagonal(), variance.expand(1, 2), rtol=1e-8, atol=0)


def noisy(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit data, noise, and their mixture at t."""
    g = torch.Generator().manual_seed(1)
    x_0 = torch.randint(0, 256, (len(t), 2), generator=g).double() / 127.5 - 1
    x_0[0] = torch.tensor([-1, 1])  # the open tails
    eps = torch.randn(len(t), 2, generator=g, dtype=torch.float64)
    return x_0, eps, SCHEDULE.alpha(t)[:, None] * x_0 + SCHEDULE.sigma(t)[:, None] * eps


def test_loss_is_the_divergence_from_the_forward_posterior(mixture, make_oracle):
    denoiser = make_oracle(mixture, SCHEDULE)
    t = torch.tensor([2, 3, 25, 50], dtype=torch.float64) / 50
    s = t - 1 / 50
    x_0, eps, x_t = noisy(t)
    prediction = denoiser(x_t, SCHEDULE.levels(t))
    output = torch.tensor([0.3, -0.8], dtype=torch.float64)
    beta_tilde, beta = (v[:, None] for v in ends(SCHEDULE, s, t))
    scale_0 = (SCHEDULE.alpha(s) / (1 - SCHEDULE.alpha(t) ** 2))[:, None] * beta  # DDPM, Eq. 7
    scale_t = (SCHEDULE.alpha(t) / SCHEDULE.alpha(s) * SCHEDULE.sigma(s) ** 2 / SCHEDULE.sigma(t) ** 2)[:, None]
    v = (output + 1) / 2
    model = Normal(scale_0 * prediction.x0 + scale_t * x_t, (beta**v * beta_tilde ** (1 - v)).sqrt())
    expected = kl_divergence(Normal(scale_0 * x_0 + scale_t * x_t, beta_tilde.sqrt()), model).sum(1)
    loss = learned_range(denoiser, output).loss(denoiser, prediction, eps)
    assert_close(loss, expected, rtol=1e-6, atol=1e-8)  # nats; differences of near-equal means


def test_loss_of_the_last_step_is_the_decoder(mixture, make_oracle):
    """-log of the pixel's mass; beta_tilde of the last step, 0, is replaced by that of the step before (Sec. 3.1)."""
    denoiser = make_oracle(mixture, SCHEDULE)
    t = torch.full((3,), 1 / 50, dtype=torch.float64)
    x_0, eps, x_t = noisy(t)
    prediction = denoiser(x_t, SCHEDULE.levels(t))
    output = torch.tensor([0.3, -0.8], dtype=torch.float64)
    beta_tilde = ends(SCHEDULE, t, 2 * t)[0][:, None]
    beta = ends(SCHEDULE, 0 * t, t)[1][:, None]
    v = (output + 1) / 2
    model = Normal(prediction.x0, (beta**v * beta_tilde ** (1 - v)).sqrt())
    above = torch.where(x_0 > 0.999, 1.0, model.cdf(x_0 + 1 / 255))
    below = torch.where(x_0 < -0.999, 0.0, model.cdf(x_0 - 1 / 255))
    expected = -(above - below).log().sum(1)
    loss = learned_range(denoiser, output).loss(denoiser, prediction, eps)
    assert torch.isfinite(loss).all()
    assert_close(loss, expected, rtol=1e-6, atol=1e-8)


def test_mixed_times_are_scored_sample_by_sample(mixture, make_oracle):
    denoiser = make_oracle(mixture, SCHEDULE)
    t = torch.tensor([1, 2, 30, 1], dtype=torch.float64) / 50
    _, eps, x_t = noisy(t)
    strategy = learned_range(denoiser, 0.2)
    together = strategy.loss(denoiser, denoiser(x_t, SCHEDULE.levels(t)), eps)
    assert together.shape == (4,)
    for i in range(4):
        one = slice(i, i + 1)
        alone = strategy.loss(denoiser, denoiser(x_t[one], SCHEDULE.levels(t[one])), eps[one])
        assert_close(together[one], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_gradient_reaches_the_head_and_not_the_mean(mixture, make_oracle, n: int):
    denoiser = make_oracle(mixture, SCHEDULE)
    t = torch.full((3,), n / 50, dtype=torch.float64)
    _, eps, x_t = noisy(t)
    exact = denoiser(x_t, SCHEDULE.levels(t))
    leaves = {name: getattr(exact, name).clone().requires_grad_() for name in ("x0", "eps", "output")}
    strategy = learned_range(denoiser, 0.1)
    strategy.loss(denoiser, replace(exact, **leaves), eps).sum().backward()
    for leaf in leaves.values():
        assert leaf.grad is None or not leaf.grad.any()
    (head,) = strategy.parameters()
    assert torch.isfinite(head.grad).all()
    assert head.grad.abs().min() > 0


def test_the_decoder_knows_the_range_of_the_data(mixture, make_oracle):
    """The bins of 256 grey levels on [0, 1] are half as wide, and the tails open at 0 and 1."""
    data_range = DataRange(0.0, 1.0)
    denoiser = Denoiser(make_oracle(mixture, SCHEDULE).network, SCHEDULE, data_range=data_range)
    t = torch.full((3,), 1 / 50, dtype=torch.float64)
    x_0, eps, _ = noisy(t)
    x_0 = data_range.from_unit(x_0)
    prediction = denoiser(denoiser.diffuse(x_0, eps, SCHEDULE.levels(t)), SCHEDULE.levels(t))
    beta_tilde, beta = ends(SCHEDULE, t, 2 * t)[0][:, None], ends(SCHEDULE, 0 * t, t)[1][:, None]
    model = Normal(prediction.x0, (beta * beta_tilde) ** 0.25)
    above = torch.where(x_0 > 0.999, 1.0, model.cdf(x_0 + 0.5 / 255))
    below = torch.where(x_0 < 0.001, 0.0, model.cdf(x_0 - 0.5 / 255))
    loss = learned_range(denoiser, 0.0).loss(denoiser, prediction, eps)
    assert_close(loss, -(above - below).log().sum(1), rtol=1e-6, atol=1e-8)


def test_refuses_data_without_grey_levels_and_a_single_step(mixture, make_oracle):
    latents = Denoiser(make_oracle(mixture, SCHEDULE).network, SCHEDULE, data_range=DataRange(None, None, None))
    with pytest.raises(ValueError, match=r"data_range must have grey levels for var=iddpm \(got none\)"):
        learned_range(latents, 0.0)
    with pytest.raises(ValueError, match=r"schedule\.num_steps must be at least 2 for var=iddpm \(got 1\)"):
        learned_range(make_oracle(mixture, VPSDESchedule(1)), 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_refuses_other_steps_than_ddpm(mixture, make_oracle, eta: float):
    strategy = learned_range(make_oracle(mixture, SCHEDULE), 0.0)
    assert isinstance(strategy, Trained)
    assert isinstance(strategy, StepModel)
    assert not isinstance(strategy, CovarianceModel)
    strategy.check_step(1.0)
    with pytest.raises(ValueError, match=rf"eta.*{eta}|{eta}.*eta"):
        strategy.check_step(eta)
