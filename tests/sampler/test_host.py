"""What depends on time alone is computed before the first network call; then host and device exchange nothing.

On a GPU each exchange would be a wait.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from optcov.denoiser import Denoiser
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance
from optcov.model import Classifier, ComplexHead
from optcov.parameterization import X0
from optcov.registry import make, options, settings_of
from optcov.sampler import DDPMSampler, ImageBar, NoiseStream
from optcov.schedule import FlowSchedule, LinearSchedule, NoiseLevels, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.trajectory import LogSNRTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import Calibrated, VarianceStrategy
from optcov.variance.fixed import BetaTilde

PATHS = {"linear": LinearSchedule(100), "vp_sde": VPSDESchedule(100), "flow": FlowSchedule(100), "ve": VESchedule(100)}
READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal}
SENDS = {torch.ops.aten.lift_fresh}  # a tensor made of numbers, whose copy to a GPU is waited for, too


class ReadBack(TorchDispatchMode):
    """Remembers, once armed, every operation that waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.found = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if self.armed and func.overloadpacket in READS | SENDS:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


class Arming(nn.Module):
    """Arms the watch at its first call, when all preparations are over."""

    data_shape, feature_channels = (3,), 3

    def __init__(self, mode: ReadBack, num_classes: int | None = None) -> None:
        super().__init__()
        self.mode, self.num_classes = mode, num_classes

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.mode.armed = True
        return x_t.tanh() if labels is None else (x_t + labels[:, None]).tanh(), x_t


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what any schedule was asked, in order."""
    asked: list[str] = []

    def watch(schedule: type[NoiseSchedule], name: str) -> None:
        answer: Callable[..., Any] = getattr(schedule, name)

        def watched(*arguments: Any) -> Any:
            asked.append(name)
            return answer(*arguments)

        monkeypatch.setattr(schedule, name, watched)

    for schedule in {type(path) for path in PATHS.values()}:
        for name in ("alpha", "sigma", "log_snr", "time", "levels"):
            watch(schedule, name)
    return asked


def times(schedule: NoiseSchedule) -> Tensor:
    return LogSNRTrajectory(t_max=0.98).times(schedule, 8)


def strategy_of(denoiser: Denoiser, uses_variance: bool, labels: Tensor | None = None) -> VarianceStrategy:
    if not uses_variance:
        return BetaTilde(denoiser)
    strategy = Analytic(denoiser, per_pixel=True)
    strategy.calibrate(denoiser, [torch.rand(8, 3)], labels=labels)
    return strategy


def test_a_read_back_is_found():
    with ReadBack() as mode:
        mode.armed = True
        float(torch.ones(()))
    assert len(mode.found) == 1


@pytest.mark.parametrize(
    ("name", "path"),
    [(n, p) for n in options("sampler") for p in PATHS if n != "euler_maruyama" or p in ("linear", "vp_sde")],
)
def test_the_loop_reads_nothing_back_and_asks_no_schedule(name: str, path: str, evaluations: list[str]):
    sampler, mode = make("sampler", name, num_steps=8), ReadBack()
    denoiser = Denoiser(Arming(mode), PATHS[path], X0())
    strategy = strategy_of(denoiser, sampler.uses_variance)
    mode.armed = False
    nodes = times(denoiser.schedule)
    evaluations.clear()
    with mode:
        states = sampler.steps(denoiser, strategy, nodes, NoiseStream(0, range(4), (3,)))
        at_calls = [len(evaluations) for _ in states]
    assert len(at_calls) == sampler.num_updates(denoiser.schedule, nodes)
    assert mode.found == []
    assert at_calls[0] > 0
    assert set(at_calls) == {at_calls[0]}


@pytest.mark.parametrize(
    "guide",
    [
        Guidance,
        partial(ClassifierFreeGuidance, weight=3.0),
        partial(ClassifierGuidance, classifier=partial(Classifier, channels=8)),
    ],
    ids=["none", "classifier_free", "classifier"],
)
def test_nor_does_guidance(guide: Callable[..., Guidance], evaluations: list[str]):
    mode, labels = ReadBack(), torch.arange(4)
    denoiser = Denoiser(Arming(mode, 4), PATHS["linear"])
    strategy = strategy_of(denoiser, True, labels.repeat(2))
    guidance, nodes = guide(denoiser, 4), times(denoiser.schedule)
    mode.armed = False
    evaluations.clear()
    noise = NoiseStream(0, range(4), (3,))
    with mode:
        states = DDPMSampler(8).steps(denoiser, strategy, nodes, noise, guidance=guidance, condition=labels)
        at_calls = [len(evaluations) for _ in states]
    assert mode.found == []
    assert set(at_calls) == {at_calls[0]}


@pytest.mark.parametrize("name", options("var"))
def test_no_variance_reads_back_and_no_bar(name: str, evaluations: list[str]):
    """Between the nodes of the schedule, where tables are interpolated."""
    mode = ReadBack()
    denoiser = Denoiser(Arming(mode), PATHS["vp_sde"])
    small = {"head": ComplexHead, "rank": 2}  # a head that reads the time, and no more directions than dimensions
    settings = {key: value for key, value in small.items() if key in settings_of("var", name)}
    strategy: VarianceStrategy = make("var", name, denoiser=denoiser, **settings)
    if isinstance(strategy, Calibrated):
        strategy.calibrate(denoiser, [torch.rand(8, 3)])
    mode.armed = False
    nodes = times(denoiser.schedule)
    evaluations.clear()
    with ImageBar(8, 4) as bar, mode:
        states = DDPMSampler(8).steps(denoiser, strategy, nodes, NoiseStream(0, range(4), (3,)))
        at_calls = [len(evaluations) for _ in bar.watch(states, 4)]
    assert mode.armed
    assert mode.found == []
    assert set(at_calls) == {at_calls[0]}


@pytest.mark.parametrize("name", PATHS)
def test_a_level_of_a_chain_is_that_of_its_time_alone(name: str):
    """On a device of one's own, in the opposite order, or put together from parts."""
    nodes = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.01
    levels = PATHS[name].levels(nodes)
    assert len(levels) == 37
    for other in (levels.to("cpu"), levels.flip().flip(), NoiseLevels.cat([levels[0], levels[1:30], levels[30:]])):
        for t, level in zip(nodes, other, strict=True):
            alone = PATHS[name].levels(t)
            assert level.t.ndim == 0
            for field in ("t", "alpha", "sigma", "log_snr", "noise_variance"):
                assert_close(getattr(level, field), getattr(alone, field), rtol=1e-14, atol=1e-15)
