"""One scalar a time against a strategy that is wrong by a known factor, on Gaussian data."""

import pytest
import torch
from torch.testing import assert_close

import optcov
from optcov.covariance import Covariance, FullCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.schedule import LinearSchedule
from optcov.variance.base import Closed
from optcov.variance.iddpm import LearnedRange
from optcov.variance.recalibrated import Recalibrated

DATA = GaussianMixture([[0.1, -0.2]], torch.tensor([[[0.03, 0.015], [0.015, 0.02]]]))


class Overconfident(Closed):
    """A quarter of the exact C at t = 0, and all of it at t = 1."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        exact = DATA.posterior(prediction.x_t, level.alpha, level.sigma)[1].to(prediction.x_t.dtype)
        return FullCovariance(exact, (2,)).affine(0.25 + 0.75 * level.t, torch.zeros_like(level.t))


def test_the_size_of_errors_is_measured_and_correlations_stay():
    schedule = LinearSchedule(1000)
    denoiser = Denoiser(OracleNetwork((2,), DATA, schedule), schedule).eval()
    images = DATA.sample(4000, torch.Generator().manual_seed(0)).float()
    strategy = Recalibrated(denoiser, Overconfident(denoiser), num_times=9, num_images=4000)
    strategy = optcov.fit(strategy, denoiser, images, progress=False)
    x_t = images[:3]
    for t in (0.01, 0.3, 0.66, 1.0):
        level = denoiser.levels(torch.tensor(t, dtype=torch.float64))
        found = strategy.covariance(denoiser, denoiser(x_t, level)).dense()
        exact = DATA.posterior(x_t, level.alpha, level.sigma)[1].float()
        # 4000 errors of two dimensions, a hundredth or two, and log kappa linear between nine times
        assert_close(found, exact, rtol=0.06, atol=1e-6)
    each = denoiser.levels(torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64))
    assert_close(strategy.covariance(denoiser, denoiser(x_t, each)).dense()[2], found[2])


def test_refusals():
    denoiser = Denoiser(OracleNetwork((2,), DATA, LinearSchedule(100)), LinearSchedule(100)).eval()
    with pytest.raises(ValueError, match=r"strategy must model Cov\[x_0\|x_t\] \(got LearnedRange"):
        Recalibrated(denoiser, LearnedRange(denoiser, lambda *shapes: torch.nn.Identity()))
    with pytest.raises(ValueError, match=r"num_times must be at least 2 \(got 1\)"):
        Recalibrated(denoiser, Overconfident(denoiser), num_times=1)
