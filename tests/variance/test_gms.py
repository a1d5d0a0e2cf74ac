"""GMS: draws have the moments they say, and a head learns those of a mixture."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import DiagonalCovariance, SkewedCovariance
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.model import SimpleHead
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0, Eps
from optcov.schedule import LinearSchedule
from optcov.variance.gms import GMS


class White:
    """Standard normal numbers of a fixed seed."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64, generator=self.generator)


def test_draws_have_the_three_moments():
    """The last is too skewed and is shortened to ``v^{3/2} / sqrt(2)``; standard errors are near 1 %."""
    variance = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64).expand(100_000, 4)
    third = torch.tensor([0.1, -0.6, 0.0, 5.0], dtype=torch.float64).expand(100_000, 4)
    x = SkewedCovariance(variance, third).draw(White(100_000, 4))
    assert_close(x.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=0.016)
    assert_close(x.var(0), variance[0], rtol=0.02, atol=0)
    expected = torch.tensor([0.1, -0.6, 0.0, 0.5**0.5], dtype=torch.float64)
    assert_close((x**3).mean(0), expected, rtol=0.06, atol=0.08)


def test_operations_keep_both_moments():
    """Of ``a x + z`` for white z, and of a bound that halves the standard deviation."""
    variance, third = torch.full((2, 3), 4.0), torch.full((2, 3), 2.0)
    moved = SkewedCovariance(variance, third).affine(torch.tensor(0.25), torch.tensor(0.5))
    assert_close(moved.variance, torch.full((2, 3), 1.5))
    assert_close(moved.third, torch.full((2, 3), 0.25))
    for smaller in (SkewedCovariance(variance, third).bounded(1.0), moved.congruence(torch.full((2, 3), 1.0))):
        assert_close(smaller.third, torch.full((2, 3), 0.25))
    half = SkewedCovariance(variance, third).lerp(SkewedCovariance(variance, 0 * third), 0.5)
    assert isinstance(half, SkewedCovariance)
    assert_close(half.third, torch.full((2, 3), 1.0))
    assert not isinstance(moved.lerp(DiagonalCovariance(variance), 0.5), SkewedCovariance)
    assert_close(SkewedCovariance(-variance, third).bounded(None).third, 0 * third)


@pytest.mark.parametrize("parameterization", [Eps, X0])
def test_the_loss_is_least_at_the_moments_of_x_0(make_oracle, parameterization: type):
    """By the moments of the error of the target; c_out is negative for `Eps`, which turns the third."""
    data, schedule = GaussianMixture([[-0.6], [0.7]], [0.01, 0.04], [0.7, 0.3]), LinearSchedule(1000)
    denoiser: Denoiser = make_oracle(data, schedule, parameterization())
    strategy = GMS(denoiser, SimpleHead).double()
    level = denoiser.levels(torch.tensor(0.5, dtype=torch.float64))
    x_t = torch.full((1, 1), 0.02, dtype=torch.float64)
    prediction = denoiser(x_t, level)
    grid = torch.linspace(-2, 2, 40001, dtype=torch.float64)[:, None]
    zero, one = torch.zeros(()).double(), torch.ones(()).double()
    density = data.log_density(grid, one, zero) - ((x_t - level.alpha * grid) ** 2)[:, 0] / (2 * level.sigma**2)
    weights = density.softmax(0)[:, None]
    target = denoiser.target(grid, (x_t - level.alpha * grid) / level.sigma, level)
    moments = [(weights * (target - prediction.output) ** k).sum() for k in (2, 3)]
    strategy.head.output.bias.data.copy_(torch.stack(moments))  # all other weights are 0
    covariance = strategy.covariance(denoiser, prediction)
    for k, found in ((2, covariance.variance), (3, covariance.third)):
        exact = (weights * (grid - prediction.x0) ** k).sum()
        assert_close(found[0, 0], exact, rtol=1e-6, atol=0)
    assert abs(float(exact)) > 1e-3
    outputs = torch.stack(moments).requires_grad_()
    strategy.head_outputs = lambda *_: outputs.reshape(1, 2, 1).expand(len(grid), 2, 1)
    (slope,) = torch.autograd.grad((weights[:, 0] * strategy.loss(denoiser, prediction, target)).sum(), outputs)
    assert_close(slope, torch.zeros(2).double(), rtol=0, atol=1e-9)


def test_a_step_has_the_third_moment_of_its_kernel(make_oracle):
    schedule = LinearSchedule(1000)
    denoiser = make_oracle(GaussianMixture([[0.3]], [0.25]), schedule, X0())
    strategy = GMS(denoiser, SimpleHead).double()
    strategy.head.output.bias.data.copy_(torch.tensor([0.04, 0.002]))
    s, t = (denoiser.levels(torch.tensor(each, dtype=torch.float64)) for each in (0.2, 0.6))
    kernel = ReverseKernel.from_levels(s, t)
    step = strategy.transition(kernel, denoiser, denoiser(torch.zeros(5, 1).double(), t))
    assert isinstance(step, SkewedCovariance)
    assert_close(step.third, torch.full((5, 1), 0.002 * float(kernel.c) ** 3).double(), rtol=1e-6, atol=0)
