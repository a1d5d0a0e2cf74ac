"""Divergences and pixel masses against torch.distributions and against 60 digits."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, IsotropicCovariance
from optcov.data_range import DataRange
from optcov.likelihood import LogMass, gaussian_kl, gaussian_kl_between, pixel_log_mass, pixel_log_mass_tanh

mpmath.mp.dps = 60
HALF = mpmath.mpf(1) / 255  # of a bin


def precise_log_mass(x_0: float, mean: float, log_variance: float) -> float:
    """The log of a difference of complementary error functions, on the side of the mean where both are small."""
    side = 1 if x_0 >= mean else -1
    scale = mpmath.exp(mpmath.mpf(log_variance) / 2) * mpmath.sqrt(2)
    near, far = ((side * (mpmath.mpf(x_0) - mpmath.mpf(mean)) + h) / scale for h in (-HALF, HALF))
    inward_open, outward_open = side * x_0 < -0.999, side * x_0 > 0.999
    near = mpmath.ninf if inward_open else near
    far = mpmath.inf if outward_open else far
    return float(mpmath.log((mpmath.erfc(near) - mpmath.erfc(far)) / 2))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_kl_is_that_of_torch_distributions():
    g = torch.Generator().manual_seed(0)
    mean_q, log_q, mean_p, log_p = torch.randn(4, 5, 3, 2, 2, generator=g, dtype=torch.float64)
    expected = kl_divergence(Normal(mean_q, (log_q / 2).exp()), Normal(mean_p, (log_p / 2).exp()))
    assert_close(gaussian_kl(mean_q, log_q, mean_p, log_p), expected.flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    shared = gaussian_kl(mean_q, log_q[:1, :1, :1, :1], mean_p, log_p[:, :1, :1, :1])  # broadcast
    expected = kl_divergence(
        Normal(mean_q, (log_q[:1, :1, :1, :1] / 2).exp()), Normal(mean_p, (log_p[:, :1, :1, :1] / 2).exp())
    )
    assert_close(shared, expected.flatten(1).sum(1), rtol=1e-10, atol=1e-10)


def test_kl_vanishes_for_equals_alone():
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert_close(gaussian_kl(zero, zero - 4, zero, zero - 4), torch.zeros(2, dtype=torch.float64))
    assert (gaussian_kl(zero, zero - 4, zero + 0.01, zero - 4) > 0).all()
    assert (gaussian_kl(zero, zero - 4, zero, zero - 4.1) > 0).all()


@pytest.mark.parametrize("log_variance", [-12.0, -9.2, -6.0, -2.0, 0.0, 3.0])
@pytest.mark.parametrize("level", [0, 1, 100, 128, 254, 255])
def test_pixel_mass_is_precise(level: int, log_variance: float):
    x_0 = 2 * level / 255 - 1
    sd = torch.tensor(log_variance / 2).exp().item()
    for distance in (-50, -12, -3, -0.3, 0, 0.01, 1, 8, 50):
        mean = x_0 + distance * sd
        result = pixel_log_mass(column(x_0), column(mean), column(log_variance)).item()
        # the bin's edges are known to 1e-16; at z standard deviations the log mass moves by z / sd as much
        tolerance = 1e-9 + 4e-16 * (abs(distance) + 1) / sd * 10
        assert result == pytest.approx(precise_log_mass(x_0, mean, log_variance), rel=1e-9, abs=tolerance)


@given(mean=st.floats(-2, 2), log_variance=st.floats(-13, 2))
def test_masses_of_the_256_bins_sum_to_one(mean: float, log_variance: float):
    bins = 2 * torch.arange(256, dtype=torch.float64)[:, None] / 255 - 1
    masses = pixel_log_mass(bins, column(mean), column(log_variance))
    assert masses.shape == (256,)
    assert (masses <= 0).all()
    assert masses.exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_pixels_are_summed():
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (3, 2, 4), generator=g).double() / 127.5 - 1
    mean = x_0 + 0.1 * torch.randn(3, 2, 4, generator=g, dtype=torch.float64)
    log_variance = torch.tensor(-4.0, dtype=torch.float64)
    pixels = torch.stack(
        [
            pixel_log_mass(x[:, None], m[:, None], log_variance).sum()
            for x, m in zip(x_0.flatten(1), mean.flatten(1), strict=True)
        ]
    )
    assert_close(pixel_log_mass(x_0, mean, log_variance), pixels, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_variance", [-16.0, -9.2, -2.0, 4.0])
def test_values_and_gradients_are_finite_far_away(dtype: torch.dtype, log_variance: float):
    bins = (2 * torch.arange(0, 256, 5, dtype=dtype) / 255 - 1)[:, None]
    for offset in (-3.0, -0.1, 0.0, 1e-3, 0.5, 3.0):
        mean = (bins + offset).requires_grad_()
        log = torch.full_like(bins, log_variance).requires_grad_()
        value = pixel_log_mass(bins, mean, log)
        value.sum().backward()
        for tensor in (value, mean.grad, log.grad):
            assert torch.isfinite(tensor).all()
        if offset >= 0.5:  # towards the pixel is uphill, except inside an open tail
            assert (mean.grad[:-1] <= 0).all()
            assert mean.grad[0] < 0 or log_variance > 3


@pytest.mark.parametrize("log_variance", [-9.2, -3.0, 1.0])
def test_gradients_are_those_of_the_precise_mass(log_variance: float):
    sd = torch.tensor(log_variance / 2).exp().item()
    for level, distance in [(0, 3.0), (0, -2.0), (128, 0.4), (128, -20.0), (128, 50.0), (255, -5.0), (255, 4.0)]:
        x_0 = 2 * level / 255 - 1
        at = [x_0 + distance * sd, log_variance]
        mean, log = (column(v).requires_grad_() for v in at)
        gradient = torch.autograd.grad(pixel_log_mass(column(x_0), mean, log).sum(), (mean, log))
        for k, step in enumerate((1e-4 * sd, 1e-4)):
            up, down = ([v + sign * step * (j == k) for j, v in enumerate(at)] for sign in (1, -1))
            slope = (precise_log_mass(x_0, *up) - precise_log_mass(x_0, *down)) / (2 * step)
            # central differences: relative error step^2 times third derivatives, and the rounding of a float64 result
            assert gradient[k].item() == pytest.approx(slope, rel=1e-5, abs=1e-7 / sd)


class WithoutInverseTrace(FullCovariance):
    """A kind that leaves ``inv_trace`` to the base."""

    inv_trace = Covariance.inv_trace


def random_covariance(kind: str, g: torch.Generator) -> tuple[Covariance, Tensor]:
    if kind in ("full", "base"):
        root = torch.randn(5, 4, 4, generator=g, dtype=torch.float64)
        matrix = root @ root.mT + 0.1 * torch.eye(4)
        return (FullCovariance if kind == "full" else WithoutInverseTrace)(matrix, (4,)), matrix
    if kind == "diagonal":
        variance = 0.1 + torch.rand(5, 4, generator=g, dtype=torch.float64)
        return DiagonalCovariance(variance), variance.diag_embed()
    variance = 0.1 + torch.rand(5, generator=g, dtype=torch.float64)
    return IsotropicCovariance(variance, (4,)), variance[:, None, None] * torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full", "base"])
def test_divergence_for_every_kind_of_covariance(kind: str):
    g = torch.Generator().manual_seed(0)
    covariance, matrix = random_covariance(kind, g)
    assert_close(covariance.inv_trace(), torch.linalg.inv(matrix).diagonal(dim1=1, dim2=2).sum(1))
    difference = torch.randn(5, 4, generator=g, dtype=torch.float64)
    for variance in (torch.tensor(0.37, dtype=torch.float64), torch.rand(5, generator=g, dtype=torch.float64)):
        eye = torch.eye(4, dtype=torch.float64)
        q = MultivariateNormal(difference, variance.reshape(-1, 1, 1) * eye)
        p = MultivariateNormal(torch.zeros(5, 4, dtype=torch.float64), matrix)
        assert_close(gaussian_kl_between(difference, variance, covariance), kl_divergence(q, p))


def test_divergence_keeps_its_precision_in_float32():
    """A thousand transitions of 3072 dimensions must not lose a ten-thousandth of a bit per dimension to rounding."""
    g = torch.Generator().manual_seed(0)
    variance = 1e-4 * (1 + 1e-3 * torch.rand(4, 3072, generator=g, dtype=torch.float64))
    difference = 1e-4 * torch.randn(4, 3072, generator=g, dtype=torch.float64)
    lambda_sq = torch.tensor(1e-4, dtype=torch.float64)
    exact = gaussian_kl_between(difference, lambda_sq, DiagonalCovariance(variance))
    single = gaussian_kl_between(difference.float(), lambda_sq, DiagonalCovariance(variance.float()))
    assert (single - exact).abs().max() / (3072 * math.log(2)) * 1000 < 1e-3


def test_tanh_masses_come_close_to_the_exact_ones():
    x_0 = (torch.arange(256) / 127.5 - 1).double()[:, None]
    for log_variance in (-9.2, -6.0, -2.0):
        variance = torch.tensor(log_variance, dtype=torch.float64)
        mean = torch.tensor(0.1234, dtype=torch.float64)
        exact, tanh = (f(x_0, mean, variance) for f in (pixel_log_mass, pixel_log_mass_tanh))
        assert_close(exact.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        assert_close(tanh.exp(), exact.exp(), rtol=0, atol=7e-4)  # Phi is off by 3e-4 at each edge
        assert tanh.min() >= math.log(1e-12) - 1e-9


@pytest.mark.parametrize("log_mass", [pixel_log_mass, pixel_log_mass_tanh])
@pytest.mark.parametrize("data_range", [DataRange(0.0, 1.0), DataRange(-3.0, 5.0)], ids=str)
def test_masses_do_not_depend_on_the_units_of_the_data(log_mass: LogMass, data_range: DataRange):
    x_0 = (torch.arange(256) / 127.5 - 1).double()[:, None]
    mean, log_variance = x_0 + 0.02 * torch.sin(37 * x_0), torch.full_like(x_0, -8.0)
    scale = (data_range.high - data_range.low) / 2
    moved = log_mass(
        data_range.from_unit(x_0), data_range.from_unit(mean), log_variance + 2 * math.log(scale), data_range
    )
    assert_close(moved, log_mass(x_0, mean, log_variance, DataRange()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_levels", [2, 16])
def test_masses_of_fewer_bins_sum_to_one(num_levels: int):
    bins = torch.linspace(0, 1, num_levels, dtype=torch.float64)[:, None]
    masses = pixel_log_mass(bins, column(0.4), column(-3.0), DataRange(0.0, 1.0, num_levels))
    assert masses.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("log_mass", [pixel_log_mass, pixel_log_mass_tanh])
@pytest.mark.parametrize("data_range", [DataRange(None, None), DataRange(num_levels=None)], ids=str)
def test_data_without_grey_levels_have_no_masses(log_mass: LogMass, data_range: DataRange):
    with pytest.raises(ValueError, match=r"data_range must have grey levels for bits/dim \(got none\)"):
        log_mass(column(0.0), column(0.0), column(0.0), data_range)
