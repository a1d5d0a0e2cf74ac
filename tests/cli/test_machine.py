"""Threads and memory format as the machine suggests, or as the config says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from omegaconf import OmegaConf

from optcov.cli import machine
from optcov.cli.machine import available_threads, settle
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.schedule import LinearSchedule


@pytest.fixture(autouse=True)
def _threads_of_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(1)


def settled(**changes: object) -> Denoiser:
    cfg = OmegaConf.create(
        {"num_threads": 1, "channels_last": "auto", "sample_precision": None, "trainer": {"precision": "32-true"}}
        | changes
    )
    denoiser = Denoiser(UNet((3, 8, 8), channels=8), LinearSchedule(100))
    settle(cfg, denoiser, torch.device("cpu"))
    return denoiser


def is_channels_last(denoiser: Denoiser) -> bool:
    convolution = denoiser.network.up[0].block.layer1.weight
    return convolution.is_contiguous(memory_format=torch.channels_last) and not convolution.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"channels_last": False}, False),
        ({"trainer": {"precision": "bf16-mixed"}}, False),
        ({"trainer": {"precision": "bf16-mixed"}, "channels_last": True}, True),
    ],
)
def test_memory_format_follows_the_config(changes: dict[str, object], expected: bool):
    denoiser = settled(**changes)
    assert is_channels_last(denoiser) == expected
    features = denoiser(torch.randn(2, 3, 8, 8), torch.tensor(0.5, dtype=torch.float64)).features
    assert features.is_contiguous() != expected  # the format of the weights is that of the maps


def test_what_was_chosen_is_told_in_one_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        settled(sample_precision="bf16-mixed")
    (line,) = caplog.messages
    assert line == "cpu, 1 thread(s), channels last, training in 32-true, sampling in bf16-mixed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 5), ("900000 100000", 5), (None, 5)],
)
def test_threads_stay_within_the_quota_of_a_container(
    text: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    monkeypatch.setattr(machine, "QUOTA", quota)
    monkeypatch.setattr(machine, "OWN_THREADS", 5)
    monkeypatch.setattr(machine, "FOR_EACH_PROCESS", False)
    assert available_threads() == expected
    assert available_threads(2) == max(1, expected // 2)
    monkeypatch.setattr(machine, "FOR_EACH_PROCESS", True)  # OMP_NUM_THREADS, as torchrun and Lightning set it
    assert available_threads(2) == expected


def test_auto_forgets_the_threads_of_an_earlier_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "OWN_THREADS", 2)
    monkeypatch.setattr(machine, "QUOTA", Path("nowhere"))
    for num_threads, expected in ((1, 1), ("auto", 2)):
        settled(num_threads=num_threads)
        assert torch.get_num_threads() == expected


def test_lightning_leaves_the_threads_of_its_processes_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settled(num_threads=3)
    _set_num_threads_if_needed(num_processes=1)  # as each launcher calls it
    assert torch.get_num_threads() == 3
