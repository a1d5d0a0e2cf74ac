"""Schedules against their published formulas, written here a second time, and against quadrature of the SDE."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor
from torch.testing import assert_close

from optcov.schedule import (
    BetaSchedule,
    CosineSchedule,
    DiscreteSchedule,
    FunctionSchedule,
    LinearSchedule,
    NoiseSchedule,
    SqrtLinearSchedule,
    VPSDESchedule,
)


def published_beta(schedule: NoiseSchedule) -> np.ndarray:
    total = schedule.num_steps
    n = np.arange(1, total + 1)
    if isinstance(schedule, LinearSchedule):
        return np.linspace(1e-4, 0.02, total) * 1000 / total
    if isinstance(schedule, SqrtLinearSchedule):
        return 1 - np.sqrt(1 - 0.02 * (n / total) * 1000 / total) ** 2
    if isinstance(schedule, CosineSchedule):
        f = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    cells = [quad(lambda u: 0.1 + 19.9 * u, (k - 1) / total, k / total)[0] for k in n]
    return 1 - np.exp(-np.array(cells))


def test_published_formulas(schedule: NoiseSchedule):
    t = schedule.grid()
    beta = torch.from_numpy(published_beta(schedule))
    assert_close(schedule.alpha(t) ** 2, (1 - beta).cumprod(0), rtol=1e-9, atol=0)  # N products
    ratio = schedule.alpha(t) / schedule.alpha(t - 1 / schedule.num_steps)
    assert_close(1 - ratio**2, beta, rtol=1e-8, atol=1e-14)  # 1 - ratio^2 cancels where beta is 1e-4
    assert_close(schedule.sigma(t[:1]) ** 2, beta[:1], rtol=1e-10, atol=0)  # no cancellation allowed here


@pytest.mark.parametrize(
    ("schedule_", "first", "last"),
    [
        (LinearSchedule(1000), 1e-4, 0.02),
        (LinearSchedule(4000), 2.5e-5, 0.005),
        (SqrtLinearSchedule(1000), 2e-5, 0.02),
        (CosineSchedule(1000), 4.128e-5, 0.999),
    ],
)
def test_known_ends(schedule_: NoiseSchedule, first: float, last: float):
    n = schedule_.num_steps
    s, t = torch.tensor([[0, n - 1], [1, n]], dtype=torch.float64) / n
    expected = torch.tensor([first, last], dtype=torch.float64)
    assert_close(schedule_.variance_between(s, t), expected, rtol=1e-3, atol=0)  # digits printed above


@pytest.mark.parametrize("t", [1e-4, 0.013, 0.5, 1.0])
def test_vp_sde_is_the_integral_of_its_rate_at_any_time(t: float):
    schedule = VPSDESchedule(10, beta_min=0.3, beta_max=7.0)
    integral, _ = quad(lambda u: 0.3 + 6.7 * u, 0, t)
    time = torch.tensor(t, dtype=torch.float64)
    assert schedule.alpha(time).item() == pytest.approx(np.exp(-integral / 2), rel=1e-12)
    assert schedule.sigma(time).item() == pytest.approx(np.sqrt(-np.expm1(-integral)), rel=1e-12)


def test_amplitudes(schedule: NoiseSchedule):
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha.dtype == sigma.dtype == schedule.log_snr(t).dtype == torch.float64
    assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha > 0).all()
    assert (sigma < 1).all()
    assert_close(schedule.log_alpha(t), alpha.log(), rtol=1e-10, atol=1e-15)


def test_log_snr_decreases(schedule: NoiseSchedule):
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert log_snr[0] == torch.inf
    assert torch.isfinite(log_snr[1:]).all()
    assert (log_snr.diff() < 0).all()
    assert_close(log_snr[1:], 2 * (schedule.alpha(t) / schedule.sigma(t)).log()[1:], rtol=1e-10, atol=1e-10)


def test_variance_between_at_any_stride(schedule: NoiseSchedule):
    total = schedule.num_steps
    product = torch.cat([torch.ones(1), torch.from_numpy(1 - published_beta(schedule))]).cumprod(0)
    g = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, total + 1, (200, 2), generator=g).sort(1).values
    s, t = pairs.double().T / total
    variance = schedule.variance_between(s, t)
    assert variance.dtype == torch.float64
    assert_close(variance, 1 - product[pairs[:, 1]] / product[pairs[:, 0]], rtol=1e-8, atol=1e-12)
    ratio = schedule.alpha(t) / schedule.alpha(s)
    assert_close(variance, schedule.sigma(t) ** 2 - ratio**2 * schedule.sigma(s) ** 2, rtol=1e-8, atol=1e-12)
    assert (variance[s == t] == 0).all()
    assert (variance[s < t] > 0).all()


def test_shapes_broadcast(schedule: NoiseSchedule):
    t = schedule.grid()[-3:]
    table = schedule.variance_between((t - 1 / schedule.num_steps)[:, None] * 0, t)
    assert table.shape == (3, 3)
    assert schedule.alpha(t[0]).shape == ()
    assert_close(schedule.sigma(t.reshape(3, 1)), schedule.sigma(t).reshape(3, 1), rtol=0, atol=0)


@given(total=st.integers(1, 3000))
def test_grid_and_interpolation_are_exact(total: int):
    schedule = CosineSchedule(total)
    t = schedule.grid()
    assert torch.equal(t, torch.arange(1, total + 1, dtype=torch.float64) / total)
    table = torch.randn(total + 1, 2, generator=torch.Generator().manual_seed(total), dtype=torch.float64)
    # n / N times N is n to an ulp, so the value is exact to the rounding of the table
    assert_close(schedule.interpolate(table, t), table[1:], rtol=0, atol=1e-11)
    assert torch.equal(schedule.interpolate(table, torch.zeros((), dtype=torch.float64)), table[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interpolation_is_linear_between_nodes(dtype: torch.dtype):
    schedule = VPSDESchedule(4)
    table = torch.tensor([0, 1, 4, 9, 16], dtype=dtype)
    t = torch.tensor([0.125, 0.4375, 0.95], dtype=torch.float64)
    value = schedule.interpolate(table, t)
    assert value.dtype == dtype
    assert_close(value, torch.tensor([0.5, 1 + 0.75 * 3, 9 + 0.8 * 7], dtype=dtype), rtol=1e-6, atol=0)
    assert schedule.interpolate(table, t[0]).shape == ()
    assert schedule.interpolate(table[:, None, None].expand(5, 2, 3), t).shape == (3, 2, 3)


@given(beta=st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40))
def test_any_list_of_variances(beta: list[float]):
    schedule = DiscreteSchedule(torch.tensor(beta, dtype=torch.float64))
    assert schedule.num_steps == len(beta)
    s = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.grid()])
    assert_close(schedule.variance_between(s[:-1], s[1:]), torch.tensor(beta).double(), rtol=1e-6, atol=1e-14)
    middle = schedule.log_alpha((s[:-1] + s[1:]) / 2)  # linear between nodes, as in DPM-Solver
    expected = (schedule.log_alpha(s[:-1]) + schedule.log_alpha(s[1:])) / 2
    assert_close(middle, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule, SqrtLinearSchedule, VPSDESchedule])
@pytest.mark.parametrize("num_steps", [0, -5])
def test_refuses_no_steps(kind: type[NoiseSchedule], num_steps: int):
    with pytest.raises(ValueError, match=rf"num_steps.*{num_steps}"):
        kind(num_steps)


@pytest.mark.parametrize("kind", [LinearSchedule, SqrtLinearSchedule])
def test_refuses_so_few_steps_that_a_variance_reaches_one(kind: type[NoiseSchedule]):
    kind(21)
    for num_steps in (1, 10, 20):
        with pytest.raises(ValueError, match="num_steps"):
            kind(num_steps)


@pytest.mark.parametrize(
    ("beta", "got"),
    [
        ([0.1, 1.0], "0.1 to 1"),
        ([0.1, 1.5], "0.1 to 1.5"),
        ([0.1, 0.0], "0 to 0.1"),
        ([-0.1, 0.5], "-0.1 to 0.5"),
        ([0.1, float("nan")], "nan to nan"),
        ([0.1, float("inf")], "0.1 to inf"),
    ],
)
def test_refuses_variances_outside_the_unit_interval(beta: list[float], got: str):
    """And says so of the betas: taking more steps does not mend a list that was given."""
    with pytest.raises(ValueError, match=rf"^betas must be finite and lie between 0 and 1 \(got {got}\): "):
        DiscreteSchedule(torch.tensor(beta, dtype=torch.float64))
    if beta != [0.1, 1.0]:  # after which no signal is left
        with pytest.raises(ValueError, match=rf"^betas must be .* between 0 and 1 \(got shape \[2\], from {got}\): "):
            BetaSchedule(beta)


@pytest.mark.parametrize("betas", [[], [0.1], [[0.1, 0.2]], 0.1], ids=str)
def test_refuses_what_is_no_list_of_betas(betas: Sequence[float]):
    with pytest.raises(
        ValueError, match=r"^betas must be at least 2 finite numbers, each between 0 and 1 \(got shape "
    ):
        BetaSchedule(betas)


def test_given_betas_may_end_without_signal():
    schedule = BetaSchedule([0.1, 0.5, 1.0])
    t = torch.tensor([1 / 3, 2 / 3, 1], dtype=torch.float64)
    assert_close(schedule.alpha(t) ** 2, torch.tensor([0.9, 0.45, 1e-20], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [LinearSchedule, SqrtLinearSchedule])
@pytest.mark.parametrize("beta_max", [float("nan"), float("inf"), -0.02])
def test_more_steps_are_not_advised_where_they_do_not_help(kind: type[LinearSchedule], beta_max: float):
    with pytest.raises(ValueError, match=r"^betas must be finite and lie between 0 and 1"):
        kind(1000, beta_max=beta_max)


@pytest.mark.parametrize(
    ("beta_min", "beta_max"),
    [(0.0, 20.0), (-0.1, 20.0), (20.0, 0.1), (0.1, float("inf")), (float("nan"), 20.0), (0.1, float("nan"))],
)
def test_refuses_rates_of_no_vp_sde(beta_min: float, beta_max: float):
    got = rf"\(got beta_min = {beta_min}, beta_max = {beta_max}\): "
    with pytest.raises(ValueError, match=rf"^schedule\.beta_max must be finite and at least beta_min > 0 {got}"):
        VPSDESchedule(10, beta_min, beta_max)


def test_a_rate_may_be_constant():
    schedule, t = VPSDESchedule(10, 2.0, 2.0), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    assert_close(schedule.alpha(t), torch.exp(-t), rtol=1e-14, atol=0)
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-14, atol=0)


def test_time_is_the_inverse_of_log_snr(schedule: NoiseSchedule):
    t = torch.cat([schedule.grid(), torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)])
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)  # beta is 1e-4 or less where alpha is near 1
    assert_close(schedule.time(schedule.log_snr(t[0])), t[0], rtol=0, atol=1e-9)
    assert schedule.time(schedule.log_snr(t[schedule.num_steps - 1]) - 5) == 1  # noisier than the schedule ever is
    assert schedule.time(torch.tensor(torch.inf)) == 0
    assert schedule.time(schedule.log_snr(t)[:, None]).shape == (len(t), 1)


def test_a_path_of_two_functions_is_that_path():
    schedule = FunctionSchedule(lambda t: 1 / (1 + t), lambda t: 0.01 + 2 * t, num_steps=50)
    assert schedule.num_steps == 50
    t = torch.tensor([0.0, 1e-3, 0.3, 1.0], dtype=torch.float64)
    assert_close(schedule.alpha(t), 1 / (1 + t), rtol=1e-15, atol=0)
    assert schedule.sigma(t).tolist() == [0.0, *(0.01 + 2 * t[1:]).tolist()]  # no noise at t = 0, as of a sigma_min
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-12, atol=1e-12)
    assert schedule.time(torch.tensor([-100.0, 100.0])).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("alpha", "sigma", "says"),
    [
        (
            lambda t: 1 - t,
            lambda t: t[:1],
            r"be two functions of time .*\(got shapes \[1001\] and \[1\] for \[1001\]\)",
        ),
        (lambda t: t[:1], lambda t: t, r"be two functions of time .*\(got shapes \[1\] and \[1001\] for \[1001\]\)"),
        (lambda t: 1 - t, lambda t: t / (1 - t), "be two functions of time that return finite numbers"),
        (lambda t: 1 - t.log(), lambda t: t, "be two functions of time that return finite numbers"),
        (lambda t: t, lambda t: 1 - t, r"start from clean data, .*\(got 0 and 1\)"),  # the other way round
        (lambda t: 0.9 * (1 - t), lambda t: t, r"start from clean data, .*\(got 0\.9 and 0\)"),
        (lambda t: 1 - t, lambda t: 0.1 + t, r"start from clean data, .*\(got 1 and 0\.1\)"),
        (lambda t: 1 - t, lambda t: t - 0.01, r"start from clean data, .*\(got 1 and -0\.01\)"),
        (lambda t: 1 - 1.5 * t, lambda t: t, r"have an alpha that never .*\(got alpha from -0\.5 to 1 and"),
        (lambda t: 1 + t, lambda t: t, r"have an alpha that never .*\(got alpha from 1 to 2 and"),
        (lambda t: 1 - t, lambda t: t * (1 - t), r"have an alpha .* sigma that increases .*sigma from 0 to 0\.25\)"),
        (
            lambda t: 1 - t,
            lambda t: t.clamp(max=0.5),
            r"have an alpha .* sigma that increases .*sigma from 0 to 0\.5\)",
        ),
    ],
)
def test_refuses_functions_of_no_path(alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], says: str):
    with pytest.raises(ValueError, match=rf"^schedule must {says}"):
        FunctionSchedule(alpha, sigma)
