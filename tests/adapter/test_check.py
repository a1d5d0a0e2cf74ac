"""The check at loading: a wrong time, reading or range is named, and the right one is left alone.

Networks are exact ones of images with a known distribution, so that the stated convention is right or wrong by design.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import optcov
from optcov.adapter import check
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.schedule import LinearSchedule
from optcov.schedule.levels import per_sample

PATH = LinearSchedule(1000)
SHAPE = (1, 16, 16)
STATED: dict[str, Any] = {
    "shape": SHAPE, "prediction": "eps", "schedule": "linear", "time": "n", "data_range": (-1.0, 1.0)
}  # fmt: skip


def basis() -> Tensor:
    """The orthonormal cosines of 16 points."""
    grid = torch.arange(16, dtype=torch.float64)
    waves = torch.cos(math.pi / 16 * (grid + 0.5) * grid[:, None])
    return waves / waves.norm(dim=1, keepdim=True)


def spectrum() -> Tensor:
    """Variances of cosine waves as those of natural images fall, of data on [-1, 1]."""
    frequency = torch.arange(16, dtype=torch.float64)
    return 0.5 / (1 + frequency[:, None] ** 2 + frequency**2) ** 1.5


def gaussian_images(count: int) -> Tensor:
    noise = torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (basis().T @ (noise * spectrum().sqrt()) @ basis()).float().clamp(-1, 1)


def exact(scale: float = 1.0, offset: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x, n) -> eps` of the images, times a scale, and moved."""

    def network(x: Tensor, n: Tensor) -> Tensor:
        level = PATH.levels(n.double() / 1000)
        alpha, sigma = per_sample(level.alpha, x.double()), per_sample(level.sigma, x.double())
        waves = basis() @ (x.double() - alpha * offset) @ basis().T
        return (basis().T @ (sigma / (alpha**2 * scale**2 * spectrum() + sigma**2) * waves) @ basis()).float()

    return network


def warned(network: Callable[[Tensor, Tensor], Tensor], images: Tensor | None, **stated: Any) -> str | None:
    """What `load` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optcov.load(network, **STATED | stated, images=images)
    assert len(caught) < 2
    return str(caught[0].message) if caught else None


RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5)]


@pytest.mark.parametrize("data_range", RANGES)
def test_what_is_right_is_left_alone(data_range: tuple[float, float]):
    own = DataRange(*data_range)
    network = exact((data_range[1] - data_range[0]) / 2, sum(data_range) / 2)
    assert warned(network, own.from_unit(gaussian_images(64)), data_range=data_range) is None


@pytest.mark.parametrize("stated", RANGES)
@pytest.mark.parametrize("true", RANGES)
def test_a_wrong_range_is_named(stated: tuple[float, float], true: tuple[float, float]):
    if stated == true:
        return
    network = exact((true[1] - true[0]) / 2, sum(true) / 2)
    found = warned(network, DataRange(*stated).from_unit(gaussian_images(16)), data_range=stated)
    assert found is not None
    assert f"better with data_range=({true[0]:g}, {true[1]:g})" in found


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "n - 1 for n": ({"time": "n-1"}, r'time="n"'),
    "t for n": ({"time": "t"}, r'time="n"'),
    "shifted by 20": ({"time": lambda level: level.t * 1000 + 20}, r'time="n"'),
    "log SNR for n": ({"time": lambda level: 500 + level.log_snr}, r'time="n"'),
    "v for eps": ({"prediction": "v"}, r'prediction="eps"'),
    "x0 for eps": ({"prediction": "x0"}, r'prediction="eps"'),
    "score for eps": ({"prediction": "score"}, r'prediction="eps"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_time_or_reading_is_named(name: str):
    stated, words = WRONG[name]
    found = warned(exact(), gaussian_images(16), **stated)
    assert found is not None
    assert f"these images better with {words}" in found
    assert found.endswith("smaller than as stated: compare samples of both")


OTHERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {  # networks of others
    "the sign": (lambda x, n: -exact()(x, n), "the negative of its output:"),
    "the direction of time": (lambda x, n: exact()(x, 1001 - n), r"time=lambda level: 1001 - ... (it runs from"),
    "both": (lambda x, n: -exact()(x, 1001 - n), r"the negative of its output and time=lambda level: 1001 - ..."),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_forgotten_sign_or_direction_of_time_is_named(name: str):
    network, words = OTHERS[name]
    found = warned(network, gaussian_images(16))
    assert found is not None
    assert f"these images better with {words}" in found


def test_feeds_within_a_step_are_not_told_apart():
    found = warned(exact(), gaussian_images(16), time="n-1")
    assert found is not None
    assert 'better with time="n" or "1000t" or "999t":' in found
    assert warned(exact(), gaussian_images(16), time="999t") is None


def test_what_the_network_refuses_is_no_neighbour():
    """A table has no row for the negative times of EDM."""
    table, network = torch.arange(1.0, 1001.0)[:, None], exact()

    def call(x: Tensor, n: Tensor) -> Tensor:
        return network(x, nn.functional.embedding(n, table)[:, 0])

    assert warned(call, gaussian_images(16), time="n-1") is None


def test_gross_mistakes_show_without_images():
    assert warned(exact(), None) is None
    found = warned(exact(), None, prediction="x0")
    assert found is not None
    assert 'smooth random images better with prediction="eps"' in found


def test_errors_of_two_ranges_are_of_the_same_question():
    """Of exact networks of each range, on the same images: equal, but for the times of the grid."""
    images, ours, theirs = gaussian_images(64), DataRange(), DataRange(-0.5, 0.5)
    found = []
    for own, scale in ((ours, 1.0), (theirs, 0.5)):
        denoiser = optcov.load(exact(scale), **STATED | {"data_range": own}, check=False)
        trial = check.Trial(denoiser, own.from_unit(images), None)
        errors = trial.errors(check.Convention("", "", denoiser.time, denoiser.parameterization, own))
        found.append(torch.stack([errors[f"log SNR = {each}"].mean() for each in check.LOG_SNR]))
    assert_close(*found, rtol=0.08, atol=0)
    assert abs(float((found[0] / found[1]).log().mean())) < 0.02  # a share of what a wrong range costs


def test_a_slow_network_is_asked_about_fewer_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "SECONDS", 0.0)
    counts, network = set(), exact()

    def slow(x: Tensor, n: Tensor) -> Tensor:
        counts.add(len(x))
        return network(x, n)

    assert warned(slow, gaussian_images(16), prediction="x0") is not None
    assert counts == {2, 3, 64, 4}  # of load's own questions, the first try, and the others


def test_a_check_that_is_not_wanted_is_left_out():
    asked: list[Denoiser] = []
    optcov.load(lambda x, n: (asked.append(x), x)[1], **STATED, check=False)  # type: ignore[func-returns-value]
    assert {len(each) for each in asked} == {2, 3}  # how the network is called is found out by a few samples
