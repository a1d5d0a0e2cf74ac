"""Threads and memory format as the machine suggests, or as the config says."""

from collections.abc import Iterator

import pytest
import torch
from command_line import composed
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed

from optcov.denoiser import Denoiser
from optcov.errors import ConfigError
from optcov.model import UNet
from optcov.schedule import LinearSchedule
from optcov.training import machine
from optcov.training.machine import Machine, available_threads, configure_machine


@pytest.fixture(autouse=True)
def _threads_of_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(1)


def settled(*arguments: str, channels: int = 8) -> Denoiser:
    config = composed(*([] if any("num_threads" in each for each in arguments) else ["num_threads=1"]), *arguments)
    denoiser = Denoiser(UNet((3, 8, 8), channels=channels), LinearSchedule(100))
    configure_machine(config, denoiser, Machine.of(config))
    return denoiser


def is_channels_last(denoiser: Denoiser) -> bool:
    convolution = denoiser.network.up[0].block.layer1.weight
    return convolution.is_contiguous(memory_format=torch.channels_last) and not convolution.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], True),
        (["channels_last=false"], False),
        (["trainer.precision=bf16-mixed"], False),
        (["trainer.precision=bf16-mixed", "channels_last=true"], True),
    ],
)
def test_memory_format_follows_the_config(changes: list[str], expected: bool):
    denoiser = settled(*changes)
    assert is_channels_last(denoiser) == expected
    features = denoiser(torch.randn(2, 3, 8, 8), denoiser.levels(torch.tensor(0.5))).features
    assert features.is_contiguous() != expected  # the format of the weights is that of the maps


@pytest.mark.parametrize(("amx", "channels", "expected"), [(True, 64, True), (True, 8, False), (False, 64, False)])
def test_in_bfloat16_the_format_follows_the_processor(
    amx: bool, channels: int, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "has_amx", lambda: amx)
    assert is_channels_last(settled("trainer.precision=bf16-mixed", channels=channels)) == expected


def test_what_was_chosen_is_told_in_one_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="optcov"):
        settled("sample_precision=bf16-mixed")
    (line,) = [each.getMessage() for each in caplog.records if each.name.startswith("optcov")]
    assert line == "cpu, 1 thread(s), channels last, training in 32-true, sampling in bf16-mixed"


@pytest.mark.parametrize(("cores", "expected"), [(2, 2), (1, 1), (9, 5)])
def test_threads_stay_within_what_a_container_allows(cores: int, expected: int, monkeypatch: pytest.MonkeyPatch):
    """joblib reads the quota of a container's cgroup."""
    monkeypatch.setattr(machine, "cpu_count", lambda: cores)
    monkeypatch.setattr(machine, "OWN_THREADS", 5)
    monkeypatch.setattr(machine, "FOR_EACH_PROCESS", False)
    assert available_threads() == expected
    assert available_threads(2) == max(1, expected // 2)
    monkeypatch.setattr(machine, "FOR_EACH_PROCESS", True)  # OMP_NUM_THREADS, as torchrun and Lightning set it
    assert available_threads(2) == expected


def test_auto_forgets_the_threads_of_an_earlier_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "OWN_THREADS", 2)
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    for num_threads, expected in ((1, 1), ("auto", 2)):
        settled(f"num_threads={num_threads}")
        assert torch.get_num_threads() == expected


def test_lightning_leaves_the_threads_of_its_processes_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settled("num_threads=3")
    _set_num_threads_if_needed(num_processes=1)  # as each launcher calls it
    assert torch.get_num_threads() == 3


def test_processes_that_start_scripts_are_refused_in_a_sweep():
    """Each would start the whole sweep again; processes that are forked do not."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    alone = composed(*two)
    assert Machine.of(alone).processes == 2
    with pytest.raises(ConfigError, match=r"trainer\.strategy must .*\(got ddp\).*trainer\.strategy=ddp_fork"):
        Machine.of(alone.model_copy(update={"sweep": "outputs/sweep/one"}))
    forked = composed(*two, "trainer.strategy=ddp_fork").model_copy(update={"sweep": "outputs/sweep/one"})
    assert Machine.of(forked).processes == 2
