"""NPR and SN: the losses as published, and heads that learn the exact conditional variance of a mixture."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser, Prediction
from optcov.model import ComplexHead
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.schedule import NoiseLevels, VPSDESchedule
from optcov.variance.base import CovarianceModel, Trained, TrainedHead
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

# amounts of noise at which Cov[eps|x_t] depends on x_t: sigma_t^2 from 0.02 to 0.42
SCHEDULE = VPSDESchedule(8, beta_min=0.1, beta_max=1.0)
LINE = GaussianMixture([[-0.6], [0.5]], [0.01, 0.04], [0.4, 0.6])


class TableHead(nn.Module):
    """The same output for each sample, whatever it is shown."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        return self.output


def random(count: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def amplitudes(level: NoiseLevels, ndim: int) -> tuple[Tensor, Tensor]:
    return tuple(a.reshape(-1, *[1] * ndim) for a in (level.alpha, level.sigma))


# x_0 = c_skip x_t + c_out f, so that C = c_out^2 Cov[f]: c_out^2 of each target f, written out
C_OUT_SQ = {
    Eps: lambda alpha, sigma: sigma**2 / alpha**2,
    Score: lambda alpha, sigma: sigma**4 / alpha**2,
    X0: lambda alpha, sigma: torch.ones_like(alpha),
    V: lambda alpha, sigma: sigma**2,
    Velocity: lambda alpha, sigma: sigma**2 / (alpha + sigma) ** 2,
    EDM: lambda alpha, sigma: 0.25 * sigma**2 / (sigma**2 + 0.25 * alpha**2),
}


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("parameterization", [Eps, Score, X0, V, Velocity, EDM])
@pytest.mark.parametrize("kind", [NPR, SN])
def test_loss_and_model_of_the_covariance(
    mixture, kind: type[TrainedHead], parameterization: type[Parameterization], shape: tuple[int, ...]
):
    """NPR: ||(f - f_net)^2 - g||^2, C = c_out^2 g.  SN: ||f^2 - h||^2, C = c_out^2 (h - f_net^2).

    The residual is that of the target, in its own unit: for eps as published, for x_0 without a division by alpha.
    """
    network = OracleNetwork((2,), mixture, SCHEDULE, parameterization=parameterization())
    denoiser = Denoiser(network, SCHEDULE, parameterization())
    x_t, x_0, f_net, eps, output = random(5, 0, (5, *shape))
    output *= 20  # estimates on either side of both bounds
    level = SCHEDULE.levels(torch.tensor([1, 2, 5, 8, 8], dtype=torch.float64) / 8)
    f_net.requires_grad_()
    prediction = denoiser.prediction(x_t, level, f_net, torch.zeros(5, 1), None)
    strategy = kind(denoiser, lambda channels, data_shape: TableHead(output))
    assert isinstance(strategy, Trained)
    assert isinstance(strategy, CovarianceModel)

    f = denoiser.target(x_0, eps, level)
    if parameterization is Eps:
        assert torch.equal(f, eps)
    if parameterization is X0:
        assert torch.equal(f, x_0)
    regressed = (f - f_net.detach()) ** 2 if kind is NPR else f**2
    loss = strategy.loss(denoiser, prediction, f)
    assert_close(loss, (regressed - output).square().flatten(1).sum(1), rtol=1e-12, atol=0)
    loss.sum().backward()
    assert f_net.grad is None or not f_net.grad.any()  # the mean is left alone
    assert_close(strategy.head.output.grad, 2 * (output - regressed), rtol=1e-10, atol=1e-12)

    variance = output if kind is NPR else output - f_net.detach() ** 2
    expected = C_OUT_SQ[parameterization](*amplitudes(level, len(shape))) * variance
    assert (expected < 0).any()
    assert (expected > 1).any()
    covariance = strategy.bounded_covariance(denoiser, prediction).diagonal().detach()
    assert_close(covariance, expected.clamp(0, 1), rtol=1e-9, atol=1e-12)


def draw(mixture: GaussianMixture, denoiser: Denoiser, count: int, g: torch.Generator) -> tuple[Prediction, Tensor]:
    """What the network says of noisy data, and what it should have said."""
    level = denoiser.levels(torch.randint(1, 9, (count,), generator=g).double() / 8)
    x_0 = mixture.sample(count, g).float()
    eps = torch.randn(x_0.shape, generator=g)
    with torch.no_grad():
        return denoiser(denoiser.diffuse(x_0, eps, level), level), denoiser.target(x_0, eps, level)


def train(strategy: Trained, denoiser: Denoiser, mixture: GaussianMixture, steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(strategy.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        prediction, target = draw(mixture, denoiser, 256, g)
        optimizer.zero_grad()
        strategy.loss(denoiser, prediction, target).mean().backward()
        optimizer.step()
        decay.step()


@torch.no_grad()
def errors(strategy: CovarianceModel, denoiser: Denoiser, mixture: GaussianMixture) -> tuple[float, float]:
    """Relative L2 errors in ``Cov[f|x_t] = C / c_out^2`` of the head and of the best constants per time."""
    prediction, _ = draw(mixture, denoiser, 20_000, torch.Generator().manual_seed(1))
    level = prediction.level
    ratio = 1 / C_OUT_SQ[type(denoiser.parameterization)](*amplitudes(level, 1))
    exact = ratio * mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1].diagonal(dim1=1, dim2=2)
    head = ratio * strategy.covariance(denoiser, prediction).diagonal().double()
    constant = torch.zeros_like(exact)
    for time in level.t.unique():
        constant[level.t == time] = exact[level.t == time].mean(0)
    scale = exact.square().mean()
    return tuple(((c - exact).square().mean() / scale).sqrt().item() for c in (head, constant))


@pytest.mark.parametrize(("kind", "data", "parameterization"), [(NPR, "plane", Eps), (SN, "line", V)])
def test_heads_learn_the_conditional_variance(
    mixture, kind: type[TrainedHead], data: str, parameterization: type[Parameterization]
):
    target = LINE if data == "line" else mixture
    network = OracleNetwork((target.dim,), target, SCHEDULE, parameterization=parameterization(), num_features=64)
    denoiser = Denoiser(network, SCHEDULE, parameterization())
    torch.manual_seed(0)  # of the weights
    strategy = kind(denoiser, partial(ComplexHead, hidden_channels=64))
    train(strategy, denoiser, target, 200)
    head, constant = errors(strategy, denoiser, target)
    assert constant > 0.4  # what the best analytic covariance leaves
    assert head < 0.6 * constant, f"{head:.3f} against {constant:.3f} of the best constants"
