"""Bits/dim as a metric: invariances, what is kept of each term, and refusals."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.data.pixels import to_uint8
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.metric import FlowNLL, VariationalNLL
from optcov.model import UNet
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0
from optcov.schedule import CosineSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import Beta

SCHEDULE = CosineSchedule(50)
TIMES = EvenTrajectory().times(SCHEDULE, 5)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet((1, 4, 4), channels=8), SCHEDULE).eval()


@pytest.fixture(scope="module")
def levels() -> Tensor:
    return torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_batch_size_changes_nothing_and_the_seed_something(denoiser: Denoiser, levels: Tensor):
    scores = [
        VariationalNLL().measure(denoiser, Beta(denoiser), TIMES, levels, seed, size)
        for seed, size in ((1, 5), (1, 12), (1, 1), (2, 12))
    ]
    for score in scores[1:3]:
        assert_close(score.value, scores[0].value, rtol=1e-6, atol=0)  # a network in float32, in other batches
        assert_close(score.standard_error, scores[0].standard_error, rtol=1e-5, atol=0)
    assert scores[3].value != scores[1].value


def test_terms_add_up_and_name_their_times(denoiser: Denoiser, levels: Tensor):
    score = VariationalNLL().measure(denoiser, Beta(denoiser), TIMES, levels)
    details = score.details
    parts = [details["decoder"], details["prior"], *details["transitions"]]
    assert sum(part["value"] for part in parts) == pytest.approx(score.value, rel=1e-12)
    assert all(part["standard_error"] >= 0 for part in parts)
    assert [step["t"] for step in details["transitions"]] == TIMES[1:].tolist()
    assert [step["s"] for step in details["transitions"]] == TIMES[:-1].tolist()
    assert details["total"] == {"value": score.value, "standard_error": score.standard_error}


def test_a_dead_network_costs_what_its_variances_say(levels: Tensor):
    """With e = 0 and one step from N, everything but the decoder is known: the unit is bits per dimension."""

    class Zero(nn.Module):
        data_shape, feature_channels = (1, 4, 4), 1

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("anything", torch.zeros(1))

        def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(x_t), x_t

    denoiser = Denoiser(Zero(), SCHEDULE, X0())
    score = VariationalNLL().measure(denoiser, Beta(denoiser), TIMES[:2], levels)
    x_0 = levels.double() / 127.5 - 1
    alpha_sq, one = SCHEDULE.alpha(TIMES[1]) ** 2, torch.ones((), dtype=torch.float64)
    prior = (alpha_sq * (x_0**2).mean() - alpha_sq - torch.log(one - alpha_sq)) / 2 / math.log(2)
    assert score.details["prior"]["value"] == pytest.approx(float(prior), rel=1e-6)
    s, t = TIMES[:2]
    beta = SCHEDULE.variance_between(s, t)
    share = (SCHEDULE.sigma(s) / SCHEDULE.sigma(t)) ** 2  # beta_tilde / beta
    c_sq = (SCHEDULE.alpha(s) * beta / SCHEDULE.sigma(t) ** 2) ** 2
    kl = (share - 1 - share.log() + c_sq * (x_0**2).mean() / beta) / 2 / math.log(2)
    assert score.details["transitions"][0]["value"] == pytest.approx(float(kl), rel=1e-5)


def test_images_are_chosen_without_order_and_once(levels: Tensor):
    chosen = VariationalNLL(num_images=5).choose(levels)
    assert len(chosen) == 5
    assert torch.equal(chosen, VariationalNLL(num_images=5).choose(levels))
    assert not torch.equal(chosen, levels[:5])
    assert len(chosen.flatten(1).unique(dim=0)) == 5
    assert torch.equal(VariationalNLL().choose(levels), levels)


def test_refusals(denoiser: Denoiser, levels: Tensor):
    with pytest.raises(ValueError, match=r"num_images .*\(got 1\)"):
        VariationalNLL(num_images=1)
    with pytest.raises(ValueError, match=r"num_images .*12.*split = test \(got 13\)"):
        VariationalNLL(num_images=13).choose(levels)

    class Broken(nn.Module):
        data_shape, feature_channels = (1, 4, 4), 1

        def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return x_t / 0, x_t

    dead = Denoiser(Broken(), SCHEDULE)
    dead.register_buffer("anything", torch.zeros(1))
    with pytest.raises(ValueError, match=r"bits/dim .*12 of 12 images"):
        VariationalNLL(clip_x0=False).measure(dead, Beta(dead), TIMES, levels)


def test_with_labels_it_is_the_likelihood_of_the_class():
    """-log p(x|y) lies below -log p(x) by what a label of two far components says: a bit, half a bit a dimension.

    To 10 %, with a probe in place of the trace; the bound shares out its bits otherwise.
    """
    mixture = GaussianMixture([[-0.5, 0.0], [0.5, 0.0]], [0.003, 0.003])
    labels = mixture.draw_components(60, torch.Generator().manual_seed(0))
    levels = to_uint8(mixture.sample(60, torch.Generator().manual_seed(0)))
    known = Denoiser(OracleNetwork((2,), mixture, SCHEDULE, num_classes=2), SCHEDULE)
    for metric, low, high in ((FlowNLL(tolerance=1e-3), 0.45, 0.55), (VariationalNLL(), 0.2, 2.0)):
        none, given = (
            metric.measure(known, Beta(known), TIMES, levels, batch_size=25, labels=each).value
            for each in (None, labels)
        )
        assert low < none - given < high


class Small(nn.Module):
    """A smooth network, which an ODE solver asks a thousand times."""

    data_shape, feature_channels = (1, 4, 4), 1

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(x_t).tanh(), x_t


class Shifted(nn.Module):
    """The same network for data in [0, 2], whose alpha_t x_0 is larger by alpha_t."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.data_shape, self.feature_channels = denoiser.data_shape, denoiser.feature_channels

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        alpha = SCHEDULE.alpha(time.double() / 1000).to(x_t.dtype).view(-1, 1, 1, 1)
        return self.denoiser.network(x_t - alpha, time)  # type: ignore[no-any-return]


@pytest.mark.parametrize("metric", [VariationalNLL(), FlowNLL(tolerance=1e-6)], ids=lambda m: type(m).__name__)
def test_bits_do_not_depend_on_the_range_that_a_network_models(metric: VariationalNLL | FlowNLL, levels: Tensor):
    """But for the prior, which is centred at 0 in either; its term is left out."""
    torch.manual_seed(0)
    denoiser = Denoiser(Small(), SCHEDULE).eval()
    moved = Denoiser(Shifted(denoiser), SCHEDULE, data_range=DataRange(0.0, 2.0)).eval()
    scores = [metric.measure(each, Beta(each), TIMES, levels) for each in (denoiser, moved)]
    values = [score.value - score.details.get("prior", {"value": 0})["value"] for score in scores]
    assert_close(values[1], values[0], rtol=1e-4, atol=1e-4)
