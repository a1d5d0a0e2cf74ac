"""Images per second of whole sampling loops beside diffusers', and what each part of ours costs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import flops_per_image, pair
from benchmarks.timing import Row, Settings, Times, alternate, resident, seconds_of, synchronize
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.model import SimpleHead
from optcov.sampler import DDIMSampler, DDPMSampler, NoiseStream, Sampler
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

GOALS = {"fp32": ">= 1.2", "bf16": ">= 1.35"}


def ours(
    denoiser: Denoiser, strategy: VarianceStrategy, sampler: Sampler, batch: int, device: str
) -> Callable[[], Tensor]:
    """A turn: a batch of x_0 from noise."""
    times = EvenTrajectory().times(denoiser.schedule, sampler.num_steps)
    shape = denoiser.data_shape
    return lambda: sampler.sample(denoiser, strategy, times, NoiseStream(0, range(batch), shape, device))


def diffusers_loop(peer: Any, scheduler: Any, num_steps: int, batch: int, device: str) -> Callable[[], Tensor]:
    """A turn: what diffusers' unconditional pipelines do, without their progress bar."""
    dtype = next(peer.parameters()).dtype

    @torch.no_grad()
    def turn() -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(batch, 3, 32, 32, generator=generator, device=device, dtype=dtype)
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            x = scheduler.step(peer(x, t).sample, t, x, generator=generator).prev_sample
        return x

    return turn


def fitted(kind: type[VarianceStrategy], denoiser: Denoiser, device: str) -> VarianceStrategy:
    """A strategy whose values do not matter, only what they cost."""
    if kind in (SN, NPR):
        return kind(denoiser, head=SimpleHead).to(device).eval()  # type: ignore[call-arg]
    strategy = kind(denoiser).to(device).eval()
    if isinstance(strategy, Analytic):
        strategy.eps_variance.fill_(0.5)
    return strategy


def convolution_rate(settings: Settings, precision: str) -> float:
    """GFLOP/s of the network's 3x3 convolutions at their best, one at a time, channels last."""
    best = 0.0
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for channels, size in ((128, 32), (256, 16)):
        x = torch.randn(settings.batch_size, channels, size, size, device=settings.device, dtype=dtype)
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=settings.device, dtype=dtype)
        x, layer = (each.to(memory_format=torch.channels_last) for each in (x, layer))  # type: ignore[call-overload]
        with torch.inference_mode():
            seconds = min(seconds_of(lambda x=x, layer=layer: layer(x), settings.device) for _ in range(20))
        best = max(best, 2 * 9 * channels**2 * size**2 * settings.batch_size / seconds / 1e9)
    return best


def sampling(settings: Settings) -> Iterator[Row]:
    """Whole loops at the same precision: bfloat16 here is autocast, in diffusers ``torch_dtype``, its quickest way."""
    from diffusers import DDIMScheduler, DDPMScheduler

    device, batch = settings.device, settings.batch_size
    denoiser, peer = pair(device)
    gflop = flops_per_image(denoiser.network) / 1e9
    for precision in settings.precisions:
        rate = convolution_rate(settings, precision)
        half = peer.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        for steps in settings.steps:
            loops: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
                "ddpm, sn_dpm": (
                    ours(denoiser, fitted(SN, denoiser, device), DDPMSampler(steps), batch, device),
                    diffusers_loop(half, DDPMScheduler(), steps, batch, device),
                ),
                "ddim": (
                    ours(denoiser, BetaTilde(denoiser), DDIMSampler(steps), batch, device),
                    diffusers_loop(half, DDIMScheduler(), steps, batch, device),
                ),
            }
            for name, (turn, other) in loops.items():

                def autocast(turn: Callable[[], Tensor] = turn, precision: str = precision) -> Tensor:
                    with settings.autocast(precision):
                        return turn()

                def network(steps: int = steps, precision: str = precision) -> None:
                    bare(denoiser, batch, device, steps, settings, precision)

                times = alternate({"ours": autocast, "diffusers": other, "network": network}, settings)
                setting = f"{precision}, {steps} steps, batch {batch}"
                row = times.row("ours", "diffusers", f"sampling: {name}", setting, batch, "images/s", GOALS[precision])
                speeds = [gflop * batch * steps / times.median(each) for each in ("ours", "diffusers")]
                row.note = (
                    f"{speeds[0]:.0f} and {speeds[1]:.0f} GFLOP/s ({gflop:.1f} an image and step); "
                    f"one 3x3 convolution: {rate:.0f}"
                )
                yield row
                shares = times.ratios("ours", "network")
                share = statistics.median(shares)
                yield Row(
                    f"network's share: {name}", setting, unit="of the loop", ratio=share, low=min(shares),
                    high=max(shares), goal=">= 0.95",
                )  # fmt: skip
    peer.float()


@torch.no_grad()
def bare(denoiser: Denoiser, batch: int, device: str, steps: int, settings: Settings, precision: str) -> None:
    """The network alone, called as often as a loop does."""
    x = torch.randn(batch, *denoiser.data_shape, device=device)
    time_ = torch.full((batch,), 500.0, device=device)
    with settings.autocast(precision):
        for _ in range(steps):
            denoiser.network(x, time_)


def strategies(settings: Settings) -> Iterator[Row]:
    """What a strategy adds to a step of ``beta_tilde``, in units of that step; timed apart from the network."""
    device, batch = settings.device, settings.batch_size
    denoiser, _ = pair(device)
    denoiser.requires_grad_(False)
    t, s = (torch.tensor(value, dtype=torch.float64, device=device) for value in (0.5, 0.4))
    kernel = ReverseKernel.between(denoiser.schedule, s, t)
    x = torch.randn(batch, *denoiser.data_shape, device=device)
    with torch.no_grad():
        prediction = denoiser(x, t)
        steps = [seconds_of(lambda: denoiser(x, t), device) for _ in range(max(3, settings.rounds))]

        def draw(strategy: VarianceStrategy) -> Callable[[], Tensor]:
            return lambda: strategy.transition(kernel, denoiser, prediction, x, t).clamp(0.0, 1.0).sqrt_mul(x)

        kinds = {"beta_tilde": BetaTilde, "analytic": Analytic, "npr_dpm": NPR, "sn_dpm": SN}
        turns = {name: draw(fitted(kind, denoiser, device)) for name, kind in kinds.items()}
        times: Times = alternate({name: _often(turn, 20) for name, turn in turns.items()}, settings)
    for name, goal in (("analytic", "<= 0.5"), ("npr_dpm", "<= 1"), ("sn_dpm", "<= 1")):
        extra = [(a - b) / 20 for a, b in zip(times.seconds[name], times.seconds["beta_tilde"], strict=True)]
        percent = [100 * each / statistics.median(steps) for each in extra]
        yield Row(
            f"extra cost: {name}",
            f"fp32, batch {batch}",
            1e3 * statistics.median(extra),
            unit="ms a step",
            ratio=statistics.median(percent),
            low=min(percent),
            high=max(percent),
            goal=goal,
            note="ratio in % of a step of beta_tilde",
        )


def _often(turn: Callable[[], object], count: int) -> Callable[[], None]:
    def turns() -> None:
        for _ in range(count):
            turn()

    return turns


def defaults(settings: Settings) -> Iterator[Row]:
    """What a user gets who sets nothing: ours and diffusers' DDIM pipeline, each in a process of its own."""
    if settings.device != "cpu":
        return
    seconds: dict[str, list[float]] = {"ours": [], "diffusers": []}
    peaks: dict[str, float] = {}
    for i in range(max(3, settings.rounds)):
        for name in list(seconds)[:: 1 if i % 2 == 0 else -1]:
            environment = {**os.environ}
            environment.pop("THP_MEM_ALLOC_ENABLE", None)
            if name == "ours":
                environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as optcov.cli.main sets it
            code = f"from benchmarks.sampling import default_run; default_run('{name}', {settings.batch_size})"
            ran = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=600
            )
            told = json.loads(ran.stdout.splitlines()[-1])
            seconds[name].append(told["seconds"])
            peaks[name] = told["peak"]
    times = Times(seconds, dict(peaks))
    yield times.row(
        "ours",
        "diffusers",
        "sampling: each one's defaults",
        f"ddim, 10 steps, batch {settings.batch_size}",
        settings.batch_size,
        "images/s",
        ">= 2",
    )


def default_run(name: str, batch: int) -> None:
    """One process of :func:`defaults`: a warm-up of one step, then ten; prints seconds and peak memory as JSON."""
    from diffusers import DDIMPipeline, DDIMScheduler

    denoiser, peer = pair()
    if name == "ours":
        denoiser.requires_grad_(False)
        warm, turn = (ours(denoiser, BetaTilde(denoiser), DDIMSampler(steps), batch, "cpu") for steps in (1, 10))
    else:
        pipeline = DDIMPipeline(peer, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)

        def run(steps: int) -> Tensor:
            return pipeline(batch, num_inference_steps=steps, output_type="np").images  # type: ignore[no-any-return]

        warm, turn = lambda: run(1), lambda: run(10)
    warm()
    started = time.perf_counter()
    turn()
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": resident("VmHWM")}))


def cuda(settings: Settings) -> Iterator[Row]:
    """On a GPU: eager, compiled, and as CUDA graphs; MFU, and how often the loop waits for the device."""
    if settings.device != "cuda":
        return
    denoiser, peer = pair("cuda")
    denoiser.requires_grad_(False)
    steps, batch = settings.steps[0], settings.batch_size
    work = flops_per_image(denoiser.network) * batch * steps
    strategy = fitted(SN, denoiser, "cuda")
    from diffusers import DDPMScheduler

    modes: dict[str, str | None] = {"eager": None}
    if settings.compiled:
        modes |= {"compile": "default", "reduce-overhead (CUDA graphs)": "reduce-overhead"}
    eager = denoiser.network
    for name, mode in modes.items():
        denoiser.network = eager if mode is None else torch.compile(eager, mode=mode)  # type: ignore[assignment]
        if mode is not None:  # torch.compile's wrapper forwards attributes, but not those a Protocol wants
            denoiser.network.data_shape, denoiser.network.feature_channels = eager.data_shape, eager.feature_channels
        turn = ours(denoiser, strategy, DDPMSampler(steps), batch, "cuda")

        def autocast(turn: Callable[[], Tensor] = turn) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return turn()

        half = peer.to(torch.bfloat16)
        times = alternate(
            {"ours": autocast, "diffusers": diffusers_loop(half, DDPMScheduler(), steps, batch, "cuda")}, settings
        )
        row = times.row(
            "ours", "diffusers", f"GPU: {name}", f"bf16, ddpm, sn_dpm, {steps} steps, batch {batch}", batch, "images/s"
        )
        mfu = work / times.median("ours") / matmul_rate()
        row.note = (
            f"MFU {mfu:.1%} of a bf16 matrix product's rate; {host_waits(autocast)} waits of the host in the loop"
        )
        yield row


def matmul_rate() -> float:
    """FLOP/s of a large bf16 matrix product on the GPU: what MFU is measured against."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(seconds_of(lambda: a @ b, "cuda") for _ in range(10))


def host_waits(turn: Callable[[], object]) -> int:
    """How often the host waits for the GPU in a turn: synchronisations that the profiler sees, but its own last one."""
    from torch.profiler import ProfilerActivity, profile

    turn()
    synchronize("cuda")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        turn()
    names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
    counts = {event.key: event.count for event in profiler.key_averages()}
    return sum(counts.get(name, 0) for name in names) - min(1, counts.get("cudaDeviceSynchronize", 0))
