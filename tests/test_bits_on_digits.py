"""The ordering of Analytic-DPM in bits/dim, on digits, with a small network trained for seconds."""

import pytest
import torch

from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.fitting import noised
from optcov.metric import VariationalNLL
from optcov.model import UNet
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory, OptimalTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Clean, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return DigitsData()


@pytest.fixture(scope="module")
def denoiser(data: DigitsData) -> Denoiser:
    torch.manual_seed(0)
    schedule = LinearSchedule(1000)
    network = UNet((1, 8, 8), channels=8, attention_resolutions=(), middle_attention=False)
    denoiser = Denoiser(network, schedule)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    images = data.normalize(data.train)
    for _ in range(100):
        x_0 = images[torch.randint(len(images), (24,))]
        x_t, target, level = noised(denoiser, x_0)
        optimizer.zero_grad()
        denoiser.loss(denoiser(x_t, level), target).mean().backward()
        optimizer.step()
    return denoiser.eval()


def test_analytic_is_below_beta_is_below_beta_tilde(denoiser: Denoiser, data: DigitsData):
    analytic = Analytic(denoiser, imperfect_mean=True, num_images=32, num_times=20)
    analytic.calibrate(denoiser, [data.calibration(32)])
    metric = VariationalNLL(num_images=60)

    def bits(strategy: VarianceStrategy, times: torch.Tensor) -> float:
        return metric.measure(denoiser, strategy, times, metric.images(data, denoiser.data_range), 1, 512).value

    optimal = OptimalTrajectory()
    optimal.fit(denoiser, analytic, Clean([]))
    for num_steps in (5, 10):
        times = EvenTrajectory().times(denoiser.schedule, num_steps)
        scores = [bits(strategy, times) for strategy in (analytic, Beta(denoiser), BetaTilde(denoiser))]
        # published differences at 10 and 25 steps are 0.8 bits and more
        assert scores[0] + 0.1 < scores[1], scores
        assert scores[1] + 1 < scores[2], scores
        assert bits(analytic, optimal.times(denoiser.schedule, num_steps)) + 0.1 < scores[0]
