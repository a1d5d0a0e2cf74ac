"""A network that others trained and published, with its own weights and data (see benchmarks/foreign.py)."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optcov
from benchmarks import foreign
from optcov.denoiser import Denoiser


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    if not (shared_data / "foreign" / "mnist_cnn.pth").is_file():
        pytest.skip("needs the folder foreign with mnist_cnn.pth and MNIST's test images: put it into OPTCOV_DATA")
    return shared_data / "foreign"


@pytest.fixture(scope="module")
def images(folder: Path) -> Tensor:
    return foreign.mnist(folder)


@pytest.fixture(scope="module")
def denoiser(folder: Path, images: Tensor) -> Denoiser:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return foreign.load(folder, images=images[:8])  # saved on a GPU; nothing to warn of


def test_it_predicts_as_measured_by_hand(denoiser: Denoiser, images: Tensor):
    assert denoiser.feature_channels == 16
    x_0 = images[:32].float() / 255 - 0.5
    for t, expected in ((0.02, 0.093), (0.1, 0.042), (0.5, 0.005)):
        level = denoiser.levels(torch.tensor(t))
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = denoiser(denoiser.diffuse(x_0, eps, level), level).eps
        assert float(((found - eps) ** 2).mean()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"time": lambda level: level.t + 0.02}, r'time="t"'),
        ({"data_range": (-1, 1)}, r"data_range=\(-0\.5, 0\.5\)"),
    ],
    ids=["shifted by 20 steps", "range"],
)
def test_a_wrong_statement_is_noticed(folder: Path, images: Tensor, stated: dict[str, object], words: str):
    with pytest.warns(UserWarning, match=f"these images better with {words}"):
        foreign.load(folder, images=images[:8], **stated)


def test_the_covariance_improves_its_samples(denoiser: Denoiser, images: Tensor):
    """At 100 samples from the same noise; the benchmark takes 300, and heads."""
    strategy = optcov.fit("analytic_imperfect", denoiser, images, num_images=8, num_times=10, progress=False)
    distances = [
        foreign.distance(denoiser, optcov.sample(denoiser, each, 10, 100, progress=False), images[:2000])
        for each in (None, strategy)
    ]
    assert distances[1] < distances[0] - 0.5
