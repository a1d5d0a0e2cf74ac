"""Shared ground: one thread, schedules, a correlated mixture and exact denoisers of it in float64, and real data."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import options
import pytest
import torch

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import Parameterization
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, SqrtLinearSchedule, VPSDESchedule

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: as many as there are cores run side by side
hypothesis.settings.register_profile("optcov", deadline=None, derandomize=True)
hypothesis.settings.load_profile("optcov")

LONG = ("test_ddp", "test_jobs_side_by_side", "test_sweep", "test_real_data", "test_what_the_config_alone_shows")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


def pytest_collection_finish() -> None:
    """Take modules and tests, which live to the end, out of the collector's rounds: they are a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


options.read_once()


@pytest.fixture(autouse=True, scope="session")
def _do_not_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


SCHEDULES = [
    *[LinearSchedule(n) for n in (1000, 21)],
    *[CosineSchedule(n) for n in (1000, 17, 4)],
    *[SqrtLinearSchedule(n) for n in (1000, 50)],
    *[VPSDESchedule(n) for n in (1000, 7)],
]


@pytest.fixture(scope="session", params=SCHEDULES, ids=lambda s: f"{type(s).__name__}-{s.num_steps}")
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Three correlated components in the plane, of unequal weight."""
    means = [[-0.5, 0.2], [0.4, 0.5], [0.3, -0.6]]
    covariances = [[[0.04, 0.03], [0.03, 0.05]], [[0.05, -0.02], [-0.02, 0.02]], [[0.03, 0.0], [0.0, 0.08]]]
    return GaussianMixture(means, covariances, [0.5, 0.3, 0.2])


@pytest.fixture(scope="session")
def make_oracle() -> Callable[..., Denoiser]:
    """Builds the exact denoiser of a mixture, which predicts eps unless told otherwise."""

    def make(
        mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: Parameterization | None = None
    ) -> Denoiser:
        network = OracleNetwork((mixture.dim,), mixture, schedule, parameterization=parameterization, num_features=8)
        return Denoiser(network, schedule, parameterization).eval()

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that OPTCOV_DATA names; tests that need it skip without."""
    if "OPTCOV_DATA" not in os.environ:
        pytest.skip("needs real CIFAR-10 and CelebA files: set OPTCOV_DATA to the folder of cifar10 and celeba")
    return Path(os.environ["OPTCOV_DATA"])
