"""Settings that depend on the machine: device, threads, memory format and precision."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from joblib import cpu_count
from lightning import Fabric

from optcov.denoiser import Denoiser
from optcov.errors import ConfigError, config_errors
from optcov.keys import Config

log = logging.getLogger(__name__)

OWN_THREADS = torch.get_num_threads()  # PyTorch's choice, before any job in this process changes it
FOR_EACH_PROCESS = "OMP_NUM_THREADS" in os.environ  # then this choice already is the number for each process


@dataclass(frozen=True)
class Machine:
    """The device and the precisions with which this process computes.

    Args:
        device: the device of this process.
        processes: number of processes on this machine, which share its cores.
        fabric, sampling_fabric: Lightning Fabric objects with the precision of training and of sampling.
    """

    device: torch.device
    processes: int
    fabric: Fabric
    sampling_fabric: Fabric

    @classmethod
    def of(cls, config: Config) -> Machine:
        """Set up the machine that a config requests.

        Raises:
            ConfigError: if this machine, its library versions or a sweep cannot do what the config requests.
        """
        trainer = config.trainer
        if trainer["max_steps"] < 1:
            raise ConfigError(f"trainer.max_steps must be at least 1 (got {trainer['max_steps']}): give more steps")
        training, sampling = (_fabric(config, p) for p in (trainer["precision"], config.sampling_precision))
        if training.device.type == "mps":
            raise ConfigError(
                f"trainer.accelerator must be cpu on this machine (got {trainer['accelerator']}), because Apple's MPS "
                "has no float64 for schedules: set trainer=cpu"
            )
        launcher = getattr(training.strategy, "launcher", None)
        if config.sweep is not None and type(launcher).__name__ == "_SubprocessScriptLauncher":
            raise ConfigError(
                f"trainer.strategy must not start scripts in a sweep (got {trainer['strategy']}), because each process "
                "would start the whole sweep again: set trainer.strategy=ddp_fork, or start the jobs one by one"
            )
        return cls(training.device, training.world_size // trainer["num_nodes"], training, sampling)

    @property
    def name(self) -> str:
        """The name of the device, for the results."""
        on_gpu = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if on_gpu else f"{torch.get_num_threads()} CPU threads"

    @contextmanager
    def training(self) -> Iterator[torch.device]:
        """Compute in the precision of training; yields the device to use."""
        with self.fabric.autocast():
            yield self.device

    @contextmanager
    def sampling(self) -> Iterator[torch.device]:
        """Compute in the precision of sampling; yields the device to use."""
        with self.sampling_fabric.autocast():
            yield self.device


def _fabric(config: Config, precision: Any) -> Fabric:
    if str(precision).endswith("-true") and precision != "32-true":
        raise ConfigError(
            f"trainer.precision must keep weights and schedules in single precision (got {precision}): "
            "set 32-true, bf16-mixed or 16-mixed"
        )
    names = ("accelerator", "devices", "strategy", "num_nodes")
    try:
        with config_errors("trainer"):
            return Fabric(**{name: config.trainer[name] for name in names}, precision=precision)
    except (RuntimeError, ImportError, TypeError) as error:  # no GPU, no library for it, an odd number of devices
        asked = f"trainer.accelerator = {config.trainer['accelerator']} with devices = {config.trainer['devices']}"
        raise ConfigError(f"{asked}: {' '.join(str(error).split())}: set trainer=cpu, or other devices") from error


def configure_machine(config: Config, denoiser: Denoiser, machine: Machine) -> None:
    """Apply ``num_threads`` and ``channels_last``, and log them; ``auto`` means the fastest setting measured.

    Both change results only by rounding, as reordering a sum does.  The precision of sampling changes them more: in
    bfloat16, rounding makes a sample depend on its batch.  That is why only the user chooses it.
    """
    threads = available_threads(machine.processes) if config.num_threads == "auto" else config.num_threads
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise Lightning sets its own when it starts processes
    on_cpu, precision = machine.device.type == "cpu", config.trainer["precision"]
    # in bfloat16, channels-last gains only with AMX, and in narrow networks loses a tenth backward even there; on GPUs,
    # norms would undo it
    wide = denoiser.feature_channels >= 64
    auto = on_cpu and (precision in ("32-true", 32, "32") or (precision == "bf16-mixed" and wide and has_amx()))
    channels_last = auto if config.channels_last == "auto" else config.channels_last
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampling, hint = config.sampling_precision, ""
    if on_cpu and sampling != "bf16-mixed" and wide and has_bfloat16():
        hint = " (sample_precision=bf16-mixed is faster on this CPU)"
    layout = "channels last" if channels_last else "channels first"
    kind = machine.device.type
    log.info("%s, %d thread(s), %s, training in %s, sampling in %s%s", kind, threads, layout, precision, sampling, hint)


def available_threads(processes: int = 1) -> int:
    """Threads for each of ``processes`` processes: PyTorch's choice, or fewer if a container limits the cores."""
    threads: int = min(OWN_THREADS, cpu_count())
    return max(1, threads if FOR_EACH_PROCESS else threads // processes)


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; other CPUs emulate it, which is slower than float32."""
    return has_amx() or bool(_capabilities().get("avx512_bf16"))


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 matrices."""
    return bool(_capabilities().get("amx_bf16"))


def _capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # from PyTorch 2.12
