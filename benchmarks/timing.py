"""Times contenders in turns, so that other load on the machine affects all of them; the median of ratios counts."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

Contender = Callable[[], object]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Settings:
    """The choices of the command line.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: number of turns of each contender.
        seconds: no new round of a row begins after this time, but three are always made (or ``rounds``, if fewer).
        batch_size: images per batch.
        batch_sizes, threads: values for the rows on scaling.
        steps: numbers of sampling steps.
        precisions: ``fp32``, ``bf16``.
        data: folder with ``cifar10`` and ``celeba``; None to leave out data loading.
        compiled: on a GPU, also measure ``torch.compile`` and CUDA graphs, which take minutes to start.
        peak: peak FLOP/s of the GPU in bfloat16, for MFU; None if it is not known.
        quick: use small networks, matrices and data, to check that every row works instead of how fast it is.
    """

    device: str = "cpu"
    rounds: int = 5
    seconds: float = 60.0
    batch_size: int = 8
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    threads: tuple[int, ...] = (1, 2)
    steps: tuple[int, ...] = (10, 50)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    data: Path | None = None
    compiled: bool = False
    peak: float | None = None
    quick: bool = False

    @property
    def channels(self) -> int:
        """Channels of the network's first level; 128 gives ``model=unet_ddpm_cifar10``."""
        return 32 if self.quick else 128

    def autocast(self, precision: str) -> AbstractContextManager[object]:
        """The context for a precision: autocast to bfloat16, as in Lightning's ``bf16-mixed``, or nothing."""
        return torch.autocast(self.device, torch.bfloat16) if precision == "bf16" else nullcontext()

    def at(self, precision: str, turn: Contender) -> Contender:
        """Wrap a turn in `autocast`."""

        def autocast() -> object:
            with self.autocast(precision):
                return turn()

        return autocast


@dataclass
class Row:
    """A line of the table.

    Args:
        name, setting: what is measured, and how.
        ours, peer: medians, in ``unit``.
        unit: a unit such as images/s; for seconds, less is better.
        ratio: how much faster ours is, as the median over rounds; or the value that the goal is about.
        low, high: the smallest and largest ratio of the rounds.
        goal: what the ratio should be, with a comparison such as ``>= 1.2``.
        peak_ours, peak_peer: MiB of memory in addition to what was held before.
        note: further findings.
    """

    name: str
    setting: str
    ours: float | None = None
    peer: float | None = None
    unit: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: str = ""
    peak_ours: float | None = None
    peak_peer: float | None = None
    note: str = ""

    @classmethod
    def left_out(cls, name: str, why: str) -> Row:
        """Make a line that says in a sentence why there are no numbers."""
        return cls(name, "not measured", note=why)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is no goal."""
        if not self.goal or self.ratio is None:
            return None
        comparison, value = self.goal.split()
        return self.ratio >= float(value) if comparison == ">=" else self.ratio <= float(value)


@dataclass
class Times:
    """Seconds of each contender in each round, and the memory (MiB) that its first turn took."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, float | None] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, other: str) -> list[float]:
        """The time of ``other`` divided by that of ``name``, in each round."""
        return [b / a for a, b in zip(self.seconds[name], self.seconds[other], strict=True)]

    def row(self, name: str, other: str, title: str, setting: str, items: float, unit: str, goal: str = "") -> Row:
        """Make the line that compares contender ``name`` with ``other``; each handles ``items`` items in a turn."""
        ratios = self.ratios(name, other)
        return Row(
            title,
            setting,
            items / self.median(name),
            items / self.median(other),
            unit,
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            goal,
            self.peak[name],
            self.peak[other],
        )


def alternate(contenders: Mapping[str, Contender], settings: Settings, tell_seconds: bool = False) -> Times:
    """Run all contenders once to warm up and to measure memory, then in turns, with every other round reversed.

    Args:
        contenders: the turns to compare, by name.
        settings: the number of rounds and the time limit.
        tell_seconds: whether a contender returns the seconds that count in its turn, instead of being timed whole.
    """
    times = Times({name: [] for name in contenders})
    for name, contender in contenders.items():
        times.peak[name] = peak_memory(contender, settings.device)
    started = time.perf_counter()
    for i in range(settings.rounds):
        if i >= 3 and time.perf_counter() - started > settings.seconds:
            break
        for name in list(contenders)[:: 1 if i % 2 == 0 else -1]:
            turn = contenders[name]
            times.seconds[name].append(float(turn()) if tell_seconds else seconds_of(turn, settings.device))  # type: ignore[arg-type]
    return times


def seconds_of(contender: Contender, device: str, calls: int = 1) -> float:
    """Wall time of one turn, including the device's work; the mean of several calls without a wait between them."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        contender()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(contender: Contender, device: str) -> float | None:
    """MiB that a turn takes in addition to what is held before it; None if the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that the last contender left free would not be counted
        CLEAR.write_text("5")  # resets the high-water mark to what is resident now
    except (OSError, AttributeError):
        contender()
        return None
    resident_before = resident("VmHWM")
    contender()
    return resident("VmHWM") - resident_before


def resident(name: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` for the current value, ``VmHWM`` for the maximum."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
