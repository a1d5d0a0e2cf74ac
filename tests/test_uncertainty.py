"""`optcov.uncertainty`: the oracle's moments, intervals that hold the truth, and directions."""

import json

import pytest
import torch
from torch.testing import assert_close

import optcov
from optcov import uncertainties
from optcov.covariance import FullCovariance, LowRankCovariance
from optcov.data import DigitsData
from optcov.denoiser import Denoiser, Prediction
from optcov.model import UNet
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.parts import Parts
from optcov.report.modes import UncertaintyPicture
from optcov.sampler import DDPMSampler
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed
from optcov.variance.fixed import Beta


class Exact(Closed):
    """The oracle's C."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> FullCovariance:
        level = prediction.level
        return FullCovariance(DATA.posterior(prediction.x_t, level.alpha, level.sigma)[1], (3,))


DATA = GaussianMixture([[0.1, -0.2, 0.0]], [[[0.3, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]]])


def test_it_is_the_posterior_of_the_oracle(make_oracle):
    """And of 2,000 points, 90 % intervals hold 90 %."""
    denoiser = make_oracle(DATA, LinearSchedule(1000), X0())
    x_0 = DATA.sample(2_000, torch.Generator().manual_seed(0))
    level = denoiser.levels(torch.tensor(0.4, dtype=torch.float64))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = denoiser.diffuse(x_0, noise, level)
    found = optcov.uncertainty(denoiser, Exact(denoiser), x_t, 0.4, directions=2)
    mean, covariance = DATA.posterior(x_t[:1], level.alpha, level.sigma)
    values, vectors = torch.linalg.eigh(covariance[0])
    assert_close(found.mean[:1], mean)
    assert_close(found.std[0], covariance[0].diagonal().sqrt())
    assert_close(found.variances[0], values[1:].flip(0))
    assert_close((found.directions[0] * vectors[:, 1:].flip(1).T).sum(1).abs(), torch.ones(2).double())
    assert float(found.covers(x_0, 0.9).double().mean()) == pytest.approx(0.9, abs=0.02)


def test_directions_without_a_matrix_are_those_of_the_matrix(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 2.0, 1.0])[:, None]
    covariance, like = LowRankCovariance(torch.full((2, 40), 0.1).double(), factor), torch.zeros(2, 40).double()
    exact = uncertainties.principal(covariance, like, 3)
    monkeypatch.setattr(uncertainties, "EXACT_UP_TO", 1)
    values, vectors = uncertainties.principal(covariance, like, 3)
    assert_close(values, exact[0])
    assert_close((vectors * exact[1]).sum(2).abs(), torch.ones(2, 3).double())


@pytest.mark.parametrize(
    ("t", "directions", "sentence"),
    [(0.0, 0, r"t must lie in \(0, 1\] \(got 0\.0\)"), (0.5, 4, r"directions must lie in 0\.\.3.*\(got 4\)")],
)
def test_refuses_what_is_out_of_range(make_oracle, t: float, directions: int, sentence: str):
    denoiser = make_oracle(DATA, LinearSchedule(1000), X0())
    with pytest.raises(ValueError, match=f"^{sentence}: "):
        optcov.uncertainty(denoiser, "beta", torch.zeros(1, 3).double(), t, directions)


def test_the_mode_draws_and_counts(tmp_path):
    torch.manual_seed(0)
    data, schedule = DigitsData(), LinearSchedule(1000)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, channel_mult=[1]), schedule, X0())
    parts = Parts(data, denoiser, Beta(denoiser), DDPMSampler(5), EvenTrajectory(), {})
    UncertaintyPicture(rows=2, frames=8, images=16).draw(parts, tmp_path, 0, torch.device("cpu"))
    told = json.loads((tmp_path / "uncertainty.json").read_text())
    assert (tmp_path / "uncertainty.png").stat().st_size > 100
    assert [round(each["t"], 3) for each in told] == [0.333, 0.667]
    x_0 = data.normalize(data.load("test")[:16])  # an untrained network predicts 0
    std = float(schedule.sigma(torch.tensor(1 / 3, dtype=torch.float64)))
    expected = float((x_0 / min(std, 1.0)).square().mean())
    assert told[0]["mean_square"] == pytest.approx(expected, rel=1e-3)
    assert told[0]["c50"] <= told[0]["c90"] <= told[0]["c95"] <= 1


@pytest.mark.parametrize(("settings", "key"), [({"frames": 10}, "frames"), ({"images": 2}, "images")])
def test_the_mode_refuses_numbers_without_meaning(settings: dict, key: str):
    with pytest.raises(ValueError, match=rf"^mode\.{key} must .*\(got {settings[key]}\): "):
        UncertaintyPicture(**settings)
