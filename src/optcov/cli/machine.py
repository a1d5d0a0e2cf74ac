"""What follows the machine: threads, memory format, and the precision of sampling; each is a key of the config."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch
from omegaconf import DictConfig

from optcov.denoiser import Denoiser

log = logging.getLogger(__name__)

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in a period, and the period
OWN_THREADS = torch.get_num_threads()  # PyTorch's choice, before a job of this process makes another
FOR_EACH_PROCESS = "OMP_NUM_THREADS" in os.environ  # that choice was made by whoever set it, for each process


def settle(cfg: DictConfig, denoiser: Denoiser, device: torch.device, processes: int = 1) -> None:
    """Apply ``num_threads`` and ``channels_last``, where ``auto`` is what was measured to be fastest, and tell.

    Neither changes a result by more than the order of sums does.  The precision of sampling does: in bfloat16 a sample
    depends, by rounding, on its batch, so that it is chosen by the user alone.

    Args:
        cfg: composed.
        denoiser: on any device.
        device: where it will compute.
        processes: on this machine, which share its cores.
    """
    threads = available_threads(processes) if cfg.num_threads == "auto" else cfg.num_threads
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Lightning sets another number where it starts processes
    # in bfloat16, channels-last gains nothing forward and loses a tenth backward; on GPUs norms would undo it
    auto = device.type == "cpu" and cfg.trainer.precision in ("32-true", 32, "32")
    channels_last = auto if cfg.channels_last == "auto" else cfg.channels_last
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampling = cfg.sample_precision or cfg.trainer.precision
    hint = ""
    if device.type == "cpu" and sampling != "bf16-mixed" and denoiser.feature_channels >= 64 and has_bfloat16():
        hint = " (sample_precision=bf16-mixed is faster on this CPU)"
    log.info(
        "%s, %d thread(s), %s, training in %s, sampling in %s%s",
        device.type,
        threads,
        "channels last" if channels_last else "channels first",
        cfg.trainer.precision,
        sampling,
        hint,
    )


def available_threads(processes: int = 1) -> int:
    """PyTorch's own choice, or fewer where a container may use fewer cores than it sees; of each of some processes."""
    threads = OWN_THREADS
    try:
        limit, period = QUOTA.read_text().split()
        if limit != "max":
            threads = min(threads, math.ceil(int(limit) / int(period)))
    except (OSError, ValueError):  # not in a container, or not on Linux
        pass
    return max(1, threads if FOR_EACH_PROCESS else threads // processes)


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; others imitate it, slower than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # from PyTorch 2.12
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
