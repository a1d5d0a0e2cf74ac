"""The profile of a strategy, against closed forms and the published bounds."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import Guidance
from optcov.kernel import ReverseKernel
from optcov.model import UNet
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.schedule import LinearSchedule
from optcov.variance.base import Closed
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.profile import COLUMNS, num_profile_images, variance_profile

SCHEDULE = LinearSchedule(1000)


def gaussian(variance: float) -> tuple[Denoiser, Tensor]:
    """The exact denoiser of N(0, variance I) in the plane, and draws from it."""
    mixture = GaussianMixture([[0.0, 0.0]], [variance])
    images = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * variance**0.5
    return Denoiser(OracleNetwork((2,), mixture, SCHEDULE), SCHEDULE).eval(), images


class Exact(Closed):
    """The posterior variance of N(0, 0.25 I)."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t, level = prediction.x_t, prediction.level
        _, posterior = GaussianMixture([[0.0, 0.0]], [0.25]).posterior(x_t, level.alpha, level.sigma)
        return DiagonalCovariance(posterior.diagonal(dim1=1, dim2=2))


def test_the_exact_covariance_of_gaussian_data_lies_between_its_bounds():
    denoiser, images = gaussian(0.25)
    profile = variance_profile(denoiser, Exact(denoiser), images, 0.1)
    alpha_sq, sigma_sq = SCHEDULE.alpha(profile["t"]) ** 2, SCHEDULE.sigma(profile["t"]) ** 2
    exact = 0.25 * sigma_sq / (0.25 * alpha_sq + sigma_sq)
    for name in ("mean", "q05", "q95"):  # one variance for all
        assert_close(profile[name], exact, rtol=1e-10, atol=0)
    kernel = ReverseKernel.from_levels(SCHEDULE.levels(profile["s"]), SCHEDULE.levels(profile["t"]))
    assert_close(profile["step_mean"], kernel.lambda_sq + kernel.c**2 * profile["mean"], rtol=1e-12, atol=0)
    for name in ("", "step_"):
        assert bool((profile[f"{name}mean"] < profile[f"{name}upper"]).all())
    assert bool((profile["step_lower"] < profile["step_mean"]).all())


def test_the_fixed_variances_are_what_ddpm_says():
    denoiser, images = gaussian(0.25)
    for stride in (1e-3, 0.2):
        beta, tilde = (variance_profile(denoiser, kind(denoiser), images, stride) for kind in (Beta, BetaTilde))
        assert_close(beta["step_mean"], SCHEDULE.variance_between(beta["s"], beta["t"]), rtol=1e-10, atol=0)
        assert_close(tilde["step_mean"], tilde["step_lower"], rtol=0, atol=0)
        assert bool((tilde["mean"] == 0).all())


@pytest.mark.parametrize("stride", [1e-3, 0.2])
def test_a_model_of_the_step_has_the_covariance_that_makes_it(stride: float):
    """Improved DDPM at the upper end of its range: beta, which is C = sigma^2; to float32's features, not its steps."""
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), SCHEDULE).eval()

    class Top(nn.Module):
        def forward(self, features: Tensor, t: Tensor) -> Tensor:
            return torch.ones(len(features), 1, 8, 8)

    strategy = LearnedRange(denoiser, lambda channels, shape: Top())
    for guidance in (None, Guidance(denoiser)):
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        profile = variance_profile(denoiser, strategy, images, stride, num_times=10, guidance=guidance)
        assert_close(profile["mean"], SCHEDULE.sigma(profile["t"]) ** 2, rtol=1e-6, atol=0)


def test_the_bounds_of_a_step_are_the_published_ones():
    """From tau_2 to tau_1 = 1/N of the even trajectory of 10 steps."""
    denoiser, images = gaussian(0.25)
    profile = variance_profile(denoiser, BetaTilde(denoiser), images[:1], 0.111, num_times=120)
    assert list(profile) == list(COLUMNS)
    (at,) = (profile["t"] * 1000).round().eq(112).nonzero()
    assert f"{profile['step_lower'][at].item():.2e}" == "9.99e-05"
    assert f"{profile['step_upper'][at].item():.2e}" == "1.45e-01"
    assert profile["upper"][-1] == 1  # of data in [-1, 1]


def test_it_is_the_same_again_and_a_few_images_suffice():
    denoiser, images = gaussian(0.25)
    first, again = (variance_profile(denoiser, Beta(denoiser), images, 0.1, seed=3) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in COLUMNS)
    assert [num_profile_images(d) for d in (2, 64, 3072, 12288)] == [2048, 64, 8, 8]
