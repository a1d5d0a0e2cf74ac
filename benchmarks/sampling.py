"""Measures images per second of whole sampling loops, compared with diffusers', and the cost of each part of ours."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.networks import flops_per_image, pair
from benchmarks.timing import Row, Settings, Times, alternate, resident, seconds_of
from optcov.denoiser import Denoiser
from optcov.kernel import ReverseKernel
from optcov.model import SimpleHead
from optcov.sampler import DDIMSampler, DDPMSampler, NoiseStream, Sampler
from optcov.trajectory import EvenTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import TrainedHead, VarianceStrategy
from optcov.variance.fixed import BetaTilde
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

GOALS = {"fp32": ">= 1.2", "bf16": ">= 1.35"}
Strategy = TypeVar("Strategy", bound=VarianceStrategy)


def ours(
    denoiser: Denoiser, strategy: VarianceStrategy, sampler: Sampler, batch: int, device: str
) -> Callable[[], Tensor]:
    """Make our turn, which samples a batch of x_0 from noise."""
    times = EvenTrajectory().times(denoiser.schedule, sampler.num_steps)
    shape = denoiser.data_shape
    return lambda: sampler.sample(denoiser, strategy, times, NoiseStream(0, range(batch), shape, device))


def diffusers_loop(peer: Any, scheduler: Any, num_steps: int, batch: int, device: str) -> Callable[[], Tensor]:
    """Make diffusers' turn, which does what its unconditional pipelines do, without their progress bar."""
    dtype = next(peer.parameters()).dtype

    @torch.no_grad()
    def turn() -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(batch, 3, 32, 32, generator=generator, device=device, dtype=dtype)
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            # diffusers' pipelines leave t on the host and its network copies it, but CUDA graphs need it on the device
            x = scheduler.step(peer(x, t.to(device)).sample, t, x, generator=generator).prev_sample
        return x

    return turn


def fitted(kind: type[Strategy], denoiser: Denoiser, device: str) -> Strategy:
    """Make a strategy whose cost is measured; its values do not matter."""
    head = {"head": SimpleHead} if issubclass(kind, TrainedHead) else {}
    strategy = kind(denoiser, **head).to(device).eval()
    if isinstance(strategy, Analytic):
        strategy.eps_variance.fill_(0.5)
    return strategy


def convolution_rate(settings: Settings, precision: str) -> float:
    """Best GFLOP/s of the network's 3x3 convolutions, run one at a time, channels last."""
    best, calls = 0.0, 50 if settings.device == "cuda" else 1  # on a GPU a wait costs as much as a convolution
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for channels, size in ((128, 32), (256, 16)):
        x = torch.randn(settings.batch_size, channels, size, size, device=settings.device, dtype=dtype)
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=settings.device, dtype=dtype)
        turn = partial(layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        with torch.inference_mode():
            seconds = min(seconds_of(turn, settings.device, calls) for _ in range(20))
        best = max(best, 2 * 9 * channels**2 * size**2 * settings.batch_size / seconds / 1e9)
    return best


def sampling(settings: Settings) -> Iterator[Row]:
    """Whole sampling loops, compared with diffusers' loops with the same weights.

    For bfloat16, ours uses autocast and diffusers uses ``torch_dtype``, which is its fastest way.
    """
    import diffusers

    schedulers: Any = diffusers
    device, batch = settings.device, settings.batch_size
    denoiser, peer = pair(device, settings.channels)
    gflop = flops_per_image(denoiser.network) / 1e9
    for precision in settings.precisions:
        rate = convolution_rate(settings, precision)
        half = peer.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        for steps in settings.steps:
            loops: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
                "ddpm, sn_dpm": (
                    ours(denoiser, fitted(SN, denoiser, device), DDPMSampler(steps), batch, device),
                    diffusers_loop(half, schedulers.DDPMScheduler(), steps, batch, device),
                ),
                "ddim": (
                    ours(denoiser, BetaTilde(denoiser), DDIMSampler(steps), batch, device),
                    diffusers_loop(half, schedulers.DDIMScheduler(), steps, batch, device),
                ),
            }
            for name, (turn, other) in loops.items():
                turns = {
                    "ours": settings.at(precision, turn),
                    "diffusers": other,
                    "network": settings.at(precision, partial(bare, denoiser, batch, device, steps)),
                }
                times = alternate(turns, settings)
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
def bare(denoiser: Denoiser, batch: int, device: str, steps: int) -> None:
    """Call the network alone, as often as a loop does."""
    x = torch.randn(batch, *denoiser.data_shape, device=device)
    time_ = torch.full((batch,), 500.0, device=device)
    for _ in range(steps):
        denoiser.network(x, time_)


class KeptNoise:
    """White noise that is drawn once and costs nothing."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return self.noise


def strategies(settings: Settings) -> Iterator[Row]:
    """What a strategy adds to a step of ``beta_tilde``, timed without the network."""
    device, batch = settings.device, settings.batch_size
    denoiser, _ = pair(device, settings.channels)
    denoiser.requires_grad_(False)
    s, t = denoiser.levels(torch.tensor([0.4, 0.5], device=device))
    kernel = ReverseKernel.from_levels(s, t)
    x = torch.randn(batch, *denoiser.data_shape, device=device)
    noise = KeptNoise(x)
    with torch.no_grad():
        prediction = denoiser(x, t)
        steps = [seconds_of(lambda: denoiser(x, t), device) for _ in range(max(3, settings.rounds))]

        def draw(strategy: VarianceStrategy) -> Callable[[], Tensor]:
            return lambda: strategy.transition(kernel, denoiser, prediction).draw(noise)

        kinds: dict[str, type[VarianceStrategy]] = {
            "beta_tilde": BetaTilde,
            "analytic": Analytic,
            "npr_dpm": NPR,
            "sn_dpm": SN,
        }
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
    """What a user gets by default (on a GPU, with trainer=gpu), compared with diffusers' DDIM pipeline."""
    seconds: dict[str, list[float]] = {"ours": [], "diffusers": []}
    peaks: dict[str, float] = {}
    steps = 2 if settings.quick else 10
    arguments = f"{settings.batch_size}, {settings.device!r}, {settings.channels}, {steps}"
    for i in range(settings.rounds):
        for name in list(seconds)[:: 1 if i % 2 == 0 else -1]:
            environment = {**os.environ}
            environment.pop("THP_MEM_ALLOC_ENABLE", None)
            if name == "ours":
                environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as optcov.cli.main sets it
            code = f"from benchmarks.sampling import default_run; default_run({name!r}, {arguments})"
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
        f"ddim, {steps} steps, batch {settings.batch_size}",
        settings.batch_size,
        "images/s",
        ">= 2",
    )


def default_run(name: str, batch: int, device: str, channels: int, steps: int) -> None:
    """Run one process of `defaults`: warm up by one step, take a turn, and print seconds and peak memory as JSON."""
    import diffusers

    schedulers: Any = diffusers
    denoiser, peer = pair(device, channels)
    if name == "ours":
        precision = "bf16" if device == "cuda" else "fp32"  # as with trainer=gpu and trainer=auto
        warm, turn = (ours(denoiser, BetaTilde(denoiser), DDIMSampler(n), batch, device) for n in (1, steps))
    else:
        precision = "fp32"
        pipeline = schedulers.DDIMPipeline(peer, schedulers.DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)

        def run(steps: int) -> Any:
            return pipeline(batch, num_inference_steps=steps, output_type="np").images

        warm, turn = partial(run, 1), partial(run, steps)
    with Settings(device).autocast(precision):
        warm()
        seconds = seconds_of(turn, device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")
    print(json.dumps({"seconds": seconds, "peak": peak}))
