"""Rows that need a GPU: eager, compiled, CUDA graphs; model FLOPs utilisation; waits of the host for the device."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.networks import flops_per_image, pair
from benchmarks.sampling import diffusers_loop, fitted, ours
from benchmarks.timing import Row, Settings, alternate, seconds_of
from optcov.sampler import DDPMSampler
from optcov.variance.sn_dpm import SN

# dense bfloat16 FLOP/s with float32 sums, from NVIDIA's data sheets; the first pattern found in the name counts
PEAKS = {
    r"B200": 2250e12,
    r"H[12]00 NVL": 835e12,
    r"H100 PCIe": 756e12,
    r"G?H[12]00": 989e12,
    r"A100": 312e12,
    r"L40S": 362e12,
    r"L4": 121e12,
    r"A40": 150e12,
    r"A30": 165e12,
    r"A10": 125e12,
}


def peak_flops(name: str) -> float | None:
    """Peak FLOP/s of a card in bfloat16, by its name from ``torch.cuda.get_device_name``; None for unknown cards."""
    return next((peak for pattern, peak in PEAKS.items() if re.search(rf"\b{pattern}\b", name)), None)


def matmul_rate() -> float:
    """FLOP/s of a large bfloat16 matrix product on the GPU: how much of the peak can be reached."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(seconds_of(lambda: a @ b, "cuda", 10) for _ in range(5))


def utilisation(speed: float, settings: Settings, rate: float) -> str:
    """Describe ``speed`` (FLOP/s) as a share of the card's peak, which is MFU, and of a matrix product's ``rate``."""
    mfu = "MFU unknown (give --peak-tflops)" if settings.peak is None else f"MFU {speed / settings.peak:.1%}"
    return f"{mfu}, {speed / rate:.1%} of a bf16 matrix product's rate"


def host_waits(turn: Callable[[], object]) -> int | None:
    """How often the host waits for the GPU in a turn, as counted by PyTorch; None if PyTorch misses a known wait."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            torch.ones((), device="cuda").item()  # a known wait
            known = _waits(caught)
            turn()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return _waits(caught) - known if known else None


def _waits(caught: list[warnings.WarningMessage]) -> int:
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def gpu(settings: Settings) -> Iterator[Row]:
    """Sampling eager, channels last, compiled, with CUDA graphs; MFU, and how often the loop waits for the device."""
    if settings.device != "cuda":
        yield Row.left_out("GPU", "needs --device cuda")
        return
    yield from modes(settings, matmul_rate())


def modes(settings: Settings, rate: float) -> Iterator[Row]:
    """Compare the sampling loop with diffusers', both run in each of several ways.

    Args:
        settings: the settings of the benchmark.
        rate: FLOP/s of a matrix product.
    """
    import diffusers

    schedulers: Any = diffusers
    device, steps, batch = settings.device, settings.steps[0], settings.batch_size
    denoiser, peer = pair(device, settings.channels)
    work = flops_per_image(denoiser.network) * batch * steps
    ways = {"eager": "", "eager, channels last": ""}
    if settings.compiled:
        ways |= {"compile": "default", "compile, CUDA graphs": "reduce-overhead"}
    for name, mode in ways.items():
        torch.compiler.reset()
        # copies that still require gradients, as in runs, because autocast caches its casts of such weights only
        one, other = copy.deepcopy(denoiser), copy.deepcopy(peer).to(torch.bfloat16)
        layout = torch.channels_last if "channels last" in name else torch.contiguous_format
        one.to(memory_format=layout)  # type: ignore[call-overload]
        other.to(memory_format=layout)
        if mode:
            one.network.compile(mode=mode)
            other.compile(mode=mode)
        turn = settings.at("bf16", ours(one, fitted(SN, one, device), DDPMSampler(steps), batch, device))
        loop = diffusers_loop(other, schedulers.DDPMScheduler(), steps, batch, device)
        first = seconds_of(turn, device)
        times = alternate({"ours": turn, "diffusers": loop}, settings)
        setting = f"bf16, ddpm, sn_dpm, {steps} steps, batch {batch}"
        row = times.row("ours", "diffusers", f"GPU: {name}", setting, batch, "images/s")
        waits = " and ".join("?" if each is None else str(each) for each in map(host_waits, (turn, loop)))
        row.note = (
            f"{utilisation(work / times.median('ours'), settings, rate)}; "
            f"the host waits {waits} times in a turn; first turn {first:.1f} s"
        )
        yield row
