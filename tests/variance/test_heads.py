"""NPR and SN: the losses as published, and heads that learn the exact conditional variance of a mixture."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser, Prediction
from optcov.model import ComplexHead
from optcov.oracle import GaussianMixture
from optcov.schedule import VPSDESchedule
from optcov.variance.base import VarianceStrategy
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


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("kind", [NPR, SN])
def test_loss_and_model_of_the_covariance(mixture, make_oracle, kind: type[VarianceStrategy], shape: tuple[int, ...]):
    """NPR: ||(eps - e)^2 - g||^2, C = r g.  SN: ||eps^2 - h||^2, C = r (h - e^2)."""
    denoiser = make_oracle(mixture, SCHEDULE)
    x_t, x0, e, eps, output = random(5, 0, (5, *shape))
    t = torch.tensor([1, 2, 5, 8, 8], dtype=torch.float64) / 8
    e.requires_grad_()
    strategy = kind(denoiser, lambda channels, data_shape: TableHead(output))
    assert strategy.fitting == "train"
    prediction = Prediction(x0, e, x_t)
    target = (eps - e.detach()) ** 2 if kind is NPR else eps**2
    loss = strategy.loss(denoiser, prediction, eps, x_t, t)
    assert_close(loss, (target - output).square().flatten(1).sum(1), rtol=1e-10, atol=1e-12)
    loss.sum().backward()
    assert e.grad is None or not e.grad.any()  # the mean is left alone
    assert_close(strategy.head.output.grad, 2 * (output - target), rtol=1e-10, atol=1e-12)

    variance = output if kind is NPR else output - e.detach() ** 2
    r = (1 / SCHEDULE.alpha(t) ** 2 - 1).reshape(-1, *[1] * len(shape))
    covariance = strategy.covariance(denoiser, prediction, x_t, t).diagonal().detach()
    inside = (r * variance >= 0) & (r * variance <= 1)  # whether it or the transition clamps is its own choice
    assert inside.any()
    assert_close(covariance[inside], (r * variance)[inside], rtol=1e-9, atol=1e-12)


def draw(mixture: GaussianMixture, denoiser: Denoiser, count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.randint(1, 9, (count,), generator=g).double() / 8
    x_0 = mixture.sample(count, g).float()
    eps = torch.randn(x_0.shape, generator=g)
    return denoiser.diffuse(x_0, eps, t), eps, t


def train(strategy: VarianceStrategy, denoiser: Denoiser, mixture: GaussianMixture, steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(strategy.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_t, eps, t = draw(mixture, denoiser, 512, g)
        with torch.no_grad():
            prediction = denoiser(x_t, t)
        optimizer.zero_grad()
        strategy.loss(denoiser, prediction, eps, x_t, t).mean().backward()
        optimizer.step()
        decay.step()


@torch.no_grad()
def errors(strategy: VarianceStrategy, denoiser: Denoiser, mixture: GaussianMixture) -> tuple[float, float]:
    """Relative L2 errors in ``Cov[eps|x_t] = C / r`` of the head and of the best constants per time."""
    x_t, _, t = draw(mixture, denoiser, 20_000, torch.Generator().manual_seed(1))
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    ratio = (alpha / sigma)[:, None] ** 2
    exact = ratio * mixture.posterior(x_t.double(), alpha, sigma)[1].diagonal(dim1=1, dim2=2)
    head = ratio * strategy.covariance(denoiser, denoiser(x_t, t), x_t, t).diagonal().double()
    constant = torch.zeros_like(exact)
    for time in t.unique():
        constant[t == time] = exact[t == time].mean(0)
    scale = exact.square().mean()
    return tuple(((c - exact).square().mean() / scale).sqrt().item() for c in (head, constant))


@pytest.mark.parametrize(("kind", "data"), [(NPR, "line"), (SN, "line"), (NPR, "plane")])
def test_heads_learn_the_conditional_variance(mixture, make_oracle, kind: type[VarianceStrategy], data: str):
    target = LINE if data == "line" else mixture
    denoiser = make_oracle(target, SCHEDULE)
    torch.manual_seed(0)  # of the weights
    strategy = kind(denoiser, partial(ComplexHead, hidden_channels=64))
    train(strategy, denoiser, target, 1500)
    head, constant = errors(strategy, denoiser, target)
    assert constant > 0.4  # what the best analytic covariance leaves
    assert head < constant / 2, f"{head:.3f} against {constant:.3f} of the best constants"
