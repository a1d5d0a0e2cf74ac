"""The pass as one stream, and a curve from a twentieth of its times."""

import logging
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, VPSDESchedule
from optcov.variance.analytic import Analytic, ControlledMean, even_in_log_snr, interpolate_in_log_snr, left_out

LINE = GaussianMixture([[-0.6], [0.1], [0.5]], [0.01, 0.04, 0.0025], [0.5, 0.2, 0.3])


class Counting(nn.Module):
    """The oracle's network, that counts its calls and the samples in them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels = network, network.data_shape, network.feature_channels
        self.sizes: list[int] = []

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(x_t))
        return self.network(x_t, time)


def exact_curve(schedule: NoiseSchedule, nodes: Tensor) -> Tensor:
    """``1 - E[e^2]`` at nodes n, by quadrature over x_t; the narrowest peak, of width 0.05, is 4 points wide."""
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)[:, None]
    curve = []
    for t in nodes / schedule.num_steps:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        density = LINE.log_density(x, alpha, sigma).exp()
        variance = LINE.posterior(x, alpha, sigma)[1][:, 0, 0]
        curve.append((density @ variance) / density.sum() * alpha**2 / sigma**2)
    return torch.stack(curve)


class Rippling(nn.Module):
    """The oracle's network, whose answer is too large and too small in turn, as sines of the time make a network's."""

    def __init__(self, network: nn.Module, ripple: float) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels = network, network.data_shape, network.feature_channels
        self.ripple = ripple

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        eps, features = self.network(x_t, time)
        return eps * (1 + self.ripple * time.sin()[:, None]), features


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_running_mean_is_that_of_all_at_once(shape: tuple[int, ...]):
    g = torch.Generator().manual_seed(0)
    control = torch.randn(60, *shape, generator=g, dtype=torch.float64) + 0.3
    values = 5 - 2 * control + 0.1 * torch.randn(60, *shape, generator=g, dtype=torch.float64)
    running = ControlledMean()
    for part in torch.split(torch.arange(60), [1, 7, 2, 30, 20]):
        running.update(values[part], control[part])
    mean, error = running.result()
    # the regression of values on control, at control = 0: ordinary least squares, written out
    flat_v, flat_c = values.reshape(60, -1), control.reshape(60, -1)
    for v, c, m, e in zip(flat_v.T, flat_c.T, mean.reshape(-1), error.reshape(-1), strict=True):
        design = torch.stack([torch.ones(60, dtype=torch.float64), c], 1)
        solution = torch.linalg.lstsq(design, v[:, None]).solution[:, 0]
        rss = ((v - design @ solution) ** 2).sum()
        assert_close(m, solution[0], rtol=1e-10, atol=0)
        assert_close(e, (rss / 58 / 60).sqrt(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_batches_change_the_calls_but_not_the_curve(mixture, make_oracle, per_pixel: bool):
    schedule = VPSDESchedule(20)
    counting = Counting(make_oracle(mixture, schedule).network)
    denoiser = Denoiser(counting, schedule)
    clean = mixture.sample(30, torch.Generator().manual_seed(0))
    curves = []
    for batch_size, given in ((1000, [30]), (64, [10, 20]), (7, [30])):
        counting.sizes.clear()
        strategy = Analytic(denoiser, per_pixel, batch_size=batch_size)
        strategy.calibrate(denoiser, torch.split(clean, given), seed=1)
        assert counting.sizes[:-1] == [batch_size] * (600 // batch_size)  # full to the last
        assert sum(counting.sizes) == 600
        curves.append((strategy.eps_variance, strategy.eps_variance_se))
    for curve, error in curves[1:]:
        assert_close(curve, curves[0][0], rtol=1e-9, atol=1e-12)
        assert_close(error, curves[0][1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("make", [LinearSchedule, CosineSchedule, VPSDESchedule])
def test_a_twentieth_of_the_times_gives_the_curve(make, make_oracle):
    schedule = make(1000)
    denoiser = make_oracle(LINE, schedule)
    nodes = even_in_log_snr(schedule, 50)
    assert len(nodes) <= 50
    assert (nodes[0], nodes[-1]) == (1, 1000)
    table = exact_curve(schedule, nodes)
    interpolated = interpolate_in_log_snr(denoiser, nodes, table)
    assert_close(interpolated[nodes - 1], table, rtol=1e-12, atol=0)
    between = torch.arange(2, 1000, 6)
    assert (interpolated[between - 1] / exact_curve(schedule, between) - 1).abs().max() < 0.01
    columns = interpolate_in_log_snr(denoiser, nodes, torch.stack([table, 2 * table], 1))
    assert_close(columns, torch.stack([interpolated, 2 * interpolated], 1))


def test_the_cheap_pass_against_the_full_one(make_oracle):
    schedule = LinearSchedule(1000)
    counting = Counting(make_oracle(LINE, schedule).network)
    denoiser = Denoiser(counting, schedule)
    clean = LINE.sample(100, torch.Generator().manual_seed(0))
    curves, calls = [], []
    assert len(even_in_log_snr(CosineSchedule(1000), 50)) > 45  # its grid is coarse at both ends
    for num_times in (None, 50):
        counting.sizes.clear()
        strategy = Analytic(denoiser, num_images=100, num_times=num_times, batch_size=100)
        strategy.calibrate(denoiser, [clean], seed=1)
        curves.append(strategy)
        calls.append(len(counting.sizes))
    assert calls[1] * 20 <= calls[0] == 1000
    full, cheap = (strategy.eps_variance[1:] for strategy in curves)
    assert (cheap / full - 1).abs().max() < 0.01  # though the Monte-Carlo error of both is larger, for it is shared
    assert (curves[0].eps_variance_se[1:] / full).median() > 0.05
    probes = torch.arange(1, 1001, 9)
    exact = exact_curve(schedule, probes)
    for strategy in curves:  # both within the Monte-Carlo error, and an interpolation's 1 %, of the truth
        error = (strategy.eps_variance[probes] - exact).abs()
        assert (error < 4.5 * strategy.eps_variance_se[probes] + 0.01 * exact).all()


def test_a_cheap_pass_says_whether_its_curve_can_be_trusted(make_oracle, caplog):
    """Of a rippled network no few times give ``1 - E[e^2]``, but ``E[(eps - e)^2]``; the log says what is missed."""
    schedule = LinearSchedule(1000)
    clean = LINE.sample(32, torch.Generator().manual_seed(0))
    caplog.set_level(logging.INFO)

    def calibrated(ripple: float, imperfect: bool, num_times: int | None) -> Analytic:
        denoiser = Denoiser(Rippling(make_oracle(LINE, schedule).network, ripple), schedule)
        strategy = Analytic(denoiser, False, imperfect, num_images=32, num_times=num_times, batch_size=4000)
        caplog.clear()
        strategy.calibrate(denoiser, [clean], seed=1)
        return strategy

    for ripple, imperfect, trusted in ((0.0, False, True), (3e-4, False, False), (3e-4, True, True)):
        full = calibrated(ripple, imperfect, None)
        assert not caplog.records  # there is nothing to say of all times
        cheap = calibrated(ripple, imperfect, 50)
        met = ((cheap.eps_variance[1:] / full.eps_variance[1:] - 1).abs() < 0.01).double().mean()
        (said,) = (float(share) / 100 for share in re.findall(r"meets (\d+) % of the other half", caplog.text))
        assert said == pytest.approx(float(met), abs=0.15)
        assert (met > 0.9) == trusted


def test_left_out_is_the_error_of_the_curve_through_the_rest(make_oracle):
    schedule = CosineSchedule(100)
    denoiser = make_oracle(LINE, schedule)
    nodes = even_in_log_snr(schedule, 20)
    table = torch.rand(len(nodes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    missed = left_out(denoiser, nodes, table)
    assert missed.shape == ((len(nodes) - 1) // 2, 3)
    rest = [k for k in range(len(nodes)) if k % 2 == 0 or k == len(nodes) - 1]
    for k, row in zip((k for k in range(len(nodes)) if k not in rest), missed, strict=True):
        curve = interpolate_in_log_snr(denoiser, nodes[rest], table[rest])
        assert_close(row, (curve[nodes[k] - 1] - table[k]).abs() / table[k].abs())
    assert left_out(denoiser, torch.tensor([1, 50, 100]), torch.ones(3, dtype=torch.float64)).shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"num_times": 3}, r"num_times must be at least 4 \(got 3\)"),
        ({"batch_size": 0}, r"batch_size must be at least 1 \(got 0\)"),
        ({"num_images": 2}, r"num_images must be at least 3 \(got 2\)"),
    ],
)
def test_refusals(make_oracle, arguments: dict[str, int], key: str):
    with pytest.raises(ValueError, match=rf"var\.{key}"):
        Analytic(make_oracle(LINE, CosineSchedule(20)), **arguments)


def test_few_times_on_a_short_grid(make_oracle):
    """More times than the grid has are all of it; the smallest number still reaches both ends."""
    schedule = CosineSchedule(4)
    assert even_in_log_snr(schedule, 50).tolist() == [1, 2, 3, 4]
    assert even_in_log_snr(CosineSchedule(9), 4)[[0, -1]].tolist() == [1, 9]
    strategy = Analytic(make_oracle(LINE, CosineSchedule(9)), num_times=4)
    strategy.calibrate(make_oracle(LINE, CosineSchedule(9)), [LINE.sample(50, torch.Generator().manual_seed(0))])
    assert strategy.eps_variance.isfinite().all()
    assert (strategy.eps_variance_se >= 0).all()
    assert not math.isnan(float(strategy.eps_variance_se.sum()))
