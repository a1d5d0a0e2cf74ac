"""Threads and memory format as the machine suggests, or as the config says."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from optcov.cli import machine
from optcov.cli.machine import available_threads, settle
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.schedule import LinearSchedule


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
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert available_threads() == expected
