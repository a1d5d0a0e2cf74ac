"""The reverse kernel against conditioning of Gaussians, written independently, and against published numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import DiagonalCovariance, FullCovariance, IsotropicCovariance
from optcov.data_range import DataRange
from optcov.kernel import ReverseKernel
from optcov.sampler import DDIMSampler
from optcov.schedule import (
    CosineSchedule,
    FlowSchedule,
    LinearSchedule,
    NoiseSchedule,
    SqrtLinearSchedule,
    VESchedule,
    VPSDESchedule,
)
from optcov.trajectory import EvenTrajectory

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64 with a few cancelling subtractions; atol: variances near 0

PATHS = [
    *[LinearSchedule(n) for n in (1000, 21)],
    *[CosineSchedule(n) for n in (1000, 17, 4)],
    SqrtLinearSchedule(50),
    *[VPSDESchedule(n) for n in (1000, 7)],
    *[FlowSchedule(n) for n in (1000, 5)],
    *[VESchedule(n, sigma_min=0.05, sigma_max=8.0) for n in (1000, 6)],
]
paths = pytest.mark.parametrize("schedule", PATHS, ids=lambda path: f"{type(path).__name__}-{path.num_steps}")


def kernel_between(schedule: NoiseSchedule, s: Tensor, t: Tensor, eta: float = 1.0) -> ReverseKernel:
    return ReverseKernel.from_levels(schedule.levels(s), schedule.levels(t), eta)


def time_pairs(schedule: NoiseSchedule, count: int = 40) -> tuple[Tensor, Tensor]:
    """Random ``s < t`` on the grid, s = 0 included, and every neighbour of an end."""
    n = schedule.num_steps
    random = torch.rand(count, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    t = 1 + (random[:, 0] * n).long().clamp(max=n - 1)
    s = (random[:, 1] * t).long()
    s = torch.cat([s, torch.tensor([0, n - 1, 0, 1])])
    t = torch.cat([t, torch.tensor([1, n, n, n])])
    return s.double() / n, t.double() / n


def forward_amplitudes(schedule: NoiseSchedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)


def posterior_coefficients(schedule: NoiseSchedule, s: Tensor, t: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and the variance of ``q(x_s | x_t, x_0) = N(a x_0 + b x_t, variance)`` (DDIM, Eq. 7)."""
    alpha_s, sigma_s, alpha_t, sigma_t = forward_amplitudes(schedule, s, t)
    beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    variance = eta**2 * (sigma_s / sigma_t) ** 2 * beta
    b = (sigma_s**2 - variance).clamp(min=0).sqrt() / sigma_t
    return alpha_s - b * alpha_t, b, variance


@paths
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_kernel_is_total_expectation_and_variance_of_the_forward_posterior(schedule: NoiseSchedule, eta: float):
    s, t = time_pairs(schedule)
    g = torch.Generator().manual_seed(1)
    x_t, x0 = torch.randn(2, len(t), 3, generator=g, dtype=torch.float64)
    variance_x0 = torch.rand(len(t), 3, generator=g, dtype=torch.float64)
    a, b, lambda_sq = (v[:, None] for v in posterior_coefficients(schedule, s, t, eta))
    kernel = kernel_between(schedule, s, t, eta)
    alpha_s, sigma_s, alpha_t, sigma_t = (v[:, None] for v in forward_amplitudes(schedule, s, t))

    # sigma_t^2 - alpha_{t|s}^2 sigma_s^2 in the reference loses digits over short strides, hence 1e-7 and not 1e-9
    assert_close(kernel.mean(x0, (x_t - alpha_t * x0) / sigma_t), a * x0 + b * x_t, rtol=1e-7, atol=1e-8)
    covariance = kernel.covariance(DiagonalCovariance(variance_x0)).diagonal()
    assert_close(covariance, lambda_sq + a**2 * variance_x0, rtol=1e-7, atol=1e-9)
    assert_close(kernel.beta[:, None], sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, rtol=1e-6, atol=1e-10)


@paths
def test_ddpm_kernel_is_joint_gaussian_conditioning(schedule: NoiseSchedule):
    """For Gaussian data ``(x_s, x_t)`` is Gaussian and p(x_s | x_t) follows from its 2 x 2 covariance."""
    s, t = time_pairs(schedule)
    mu, v = 0.3, 0.25
    alpha_s, sigma_s, alpha_t, sigma_t = forward_amplitudes(schedule, s, t)
    x_t = torch.linspace(-3, 3, len(t), dtype=torch.float64)
    var_s, var_t = alpha_s**2 * v + sigma_s**2, alpha_t**2 * v + sigma_t**2
    cov_st = alpha_t / alpha_s * var_s
    cov_0t = alpha_t * v
    m = mu + cov_0t / var_t * (x_t - alpha_t * mu)
    kernel = kernel_between(schedule, s, t)

    mean = kernel.mean(m[:, None], ((x_t - alpha_t * m) / sigma_t)[:, None])[:, 0]
    assert_close(mean, alpha_s * mu + cov_st / var_t * (x_t - alpha_t * mu), rtol=1e-8, atol=1e-9)
    covariance = kernel.covariance(IsotropicCovariance(v - cov_0t**2 / var_t, (1,))).diagonal()[:, 0]
    assert_close(covariance, var_s - cov_st**2 / var_t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", [LinearSchedule(1000), FlowSchedule(1000), VESchedule(1000, 0.05, 8.0)], ids=type)
@given(eta=st.floats(0, 1), v=st.floats(0.01, 2), pair=st.tuples(st.floats(0, 0.99), st.floats(0.01, 1)))
def test_every_eta_keeps_the_marginals_of_gaussian_data(
    schedule: NoiseSchedule, eta: float, v: float, pair: tuple[float, float]
):
    t = torch.tensor([pair[1]], dtype=torch.float64)
    s = t * pair[0]
    alpha_s, sigma_s, alpha_t, sigma_t = (f(u) for u in (s, t) for f in (schedule.alpha, schedule.sigma))
    var_t = alpha_t**2 * v + sigma_t**2
    gain = alpha_t * v / var_t  # of m in x_t
    kernel = kernel_between(schedule, s, t, eta)
    kernel_gain = kernel.mean(gain[:, None], ((1 - alpha_t * gain) / sigma_t)[:, None])[:, 0]
    noise = kernel.covariance(IsotropicCovariance(v * sigma_t**2 / var_t, (1,))).diagonal()[:, 0]
    assert_close(kernel_gain**2 * var_t + noise, alpha_s**2 * v + sigma_s**2, **EXACT)


def test_beta_has_the_forward_variance_at_any_stride(schedule: NoiseSchedule):
    """C = sigma_t^2 I on variance-preserving paths, where unit-Gaussian data stay unit-Gaussian."""
    s, t = time_pairs(schedule)
    sigma_sq = schedule.sigma(t) ** 2
    covariance = kernel_between(schedule, s, t).covariance(IsotropicCovariance(sigma_sq, (2,)))
    expected = 1 - (schedule.alpha(t) / schedule.alpha(s)) ** 2
    assert_close(covariance.diagonal(), expected[:, None].expand(-1, 2), rtol=1e-8, atol=1e-12)


@paths
def test_gaussian_data_with_correlations_keep_their_whole_marginal_covariance(schedule: NoiseSchedule):
    """Gain alpha_t S A_t^{-1} in the mean and its C give alpha_s^2 S + sigma_s^2 I at s, from A_t at t."""
    s, t = time_pairs(schedule)
    data = torch.tensor([[0.3, 0.2], [0.2, 0.25]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    alpha_s, sigma_s, alpha_t, sigma_t = (v[:, None, None] for v in forward_amplitudes(schedule, s, t))
    total_s, total_t = alpha_s**2 * data + sigma_s**2 * eye, alpha_t**2 * data + sigma_t**2 * eye
    gain = alpha_t * torch.linalg.solve(total_t, data.expand_as(total_t)).mT
    posterior = data - alpha_t * gain @ data
    for eta in (0.0, 0.5, 1.0):
        kernel = kernel_between(schedule, s, t, eta)
        slope = kernel.mean(gain, (eye - alpha_t * gain) / sigma_t)
        noise = kernel.covariance(FullCovariance(posterior, (2,))).dense()
        assert_close(slope @ total_t @ slope.mT + noise, total_s, rtol=1e-7, atol=1e-9)


@paths
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_step_to_zero_has_the_posterior_itself(schedule: NoiseSchedule, eta: float):
    t = torch.tensor(1.0, dtype=torch.float64)  # where flow has no signal
    kernel = kernel_between(schedule, torch.zeros_like(t), t, eta)
    m, e = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(kernel.mean(m, e), m, **EXACT)
    covariance = kernel.covariance(DiagonalCovariance(m**2)).diagonal()
    assert_close(covariance, m**2, **EXACT)


@paths
def test_coefficients_of_one_step_of_samples_and_of_a_chain_agree(schedule: NoiseSchedule):
    s, t = time_pairs(schedule)
    chain = kernel_between(schedule, s, t, 0.7)
    for i in (0, 5, -1):
        one = kernel_between(schedule, s[i], t[i], 0.7)
        for name in ("alpha_t", "sigma_t", "alpha_s", "beta", "lambda_sq", "eps_scale", "c"):
            assert getattr(one, name).dtype == torch.float64
            assert_close(getattr(one, name), getattr(chain, name)[i], **EXACT)
            assert torch.equal(getattr(chain[i], name), getattr(chain, name)[i])
            assert torch.equal(getattr(chain.to(torch.device("cpu")), name), getattr(chain, name))


LINEAR_UPPER = {10: 1.45e-1, 25: 2.24e-2, 50: 6.20e-3, 100: 2.10e-3}
LINEAR_LOWER = {10: 9.99e-5, 25: 9.96e-5, 50: 9.84e-5, 100: 9.55e-5}
DDIM_UPPER = {10: 1.37e-1, 25: 1.96e-2, 50: 4.82e-3, 100: 1.36e-3}
COSINE_UPPER = {10: 3.56e-2, 25: 6.15e-3, 50: 1.85e-3, 100: 6.80e-4}


def last_bounds(schedule: NoiseSchedule, num_steps: int, eta: float) -> tuple[float, float]:
    """Bounds of Sigma at tau_2 -> tau_1: C = 0, and C = min(r, 1) (Analytic-DPM, Theorem 2)."""
    tau_1, tau_2 = EvenTrajectory().times(schedule, num_steps)[:2]
    kernel = kernel_between(schedule, tau_1, tau_2, eta)
    largest = (schedule.sigma(tau_2) / schedule.alpha(tau_2)).square().clamp(max=1)
    bounds = [kernel.covariance(IsotropicCovariance(c.reshape(1), (1,))) for c in (torch.zeros_like(largest), largest)]
    return bounds[0].diagonal().item(), bounds[1].diagonal().item()


@pytest.mark.parametrize("num_steps", [10, 25, 50, 100])
def test_published_bounds(num_steps: int):
    lower, upper = last_bounds(LinearSchedule(1000), num_steps, 1.0)
    assert f"{lower:.2e}" == f"{LINEAR_LOWER[num_steps]:.2e}"
    assert f"{upper:.2e}" == f"{LINEAR_UPPER[num_steps]:.2e}"
    lower, upper = last_bounds(LinearSchedule(1000), num_steps, 0.0)
    assert lower == pytest.approx(0, abs=1e-15)
    assert f"{upper:.2e}" == f"{DDIM_UPPER[num_steps]:.2e}"
    assert f"{last_bounds(CosineSchedule(1000), num_steps, 1.0)[1]:.2e}" == f"{COSINE_UPPER[num_steps]:.2e}"


@pytest.mark.parametrize(("grey_levels", "variance"), [(1.0, 9.6627e-5), (2.0, 3.8651e-4)])
def test_published_cuts(grey_levels: float, variance: float):
    cut = DDIMSampler(10, cut=grey_levels).max_last_variance(DataRange())
    assert f"{cut:.4e}" == f"{variance:.4e}"
    assert cut == pytest.approx((grey_levels * 2 / 255) ** 2 * math.pi / 2, rel=1e-14)
    assert DDIMSampler(10, cut=grey_levels).max_last_variance(DataRange(0.0, 1.0)) == pytest.approx(cut / 4, rel=1e-14)
    for cut_off, data_range in ((None, DataRange()), (1.0, DataRange(None, None)), (1.0, DataRange(num_levels=None))):
        assert DDIMSampler(10, cut=cut_off).max_last_variance(data_range) is None
