"""What depends on time alone is computed once for a whole chain, and is what it would be at each time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from optcov.chain import chain
from optcov.denoiser import Denoiser, noise_variance
from optcov.guidance import ClassifierFreeGuidance
from optcov.sampler import DDPMSampler, NoiseStream, Sampler
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, VPSDESchedule
from optcov.trajectory import LogSNRTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde

SAMPLERS = sorted((Path(__file__).parents[1] / "conf/sampler").glob("*.yaml"))
aten = torch.ops.aten
EVALUATIONS = {aten.index_select, aten.lerp, aten.floor, aten.exp, aten.expm1, aten.log}  # of tables and schedules


class Counting(TorchDispatchMode):
    """Counts operations that only the evaluation of a schedule, or of a table, wants."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        self.count += func.overloadpacket in EVALUATIONS and (args[0].dtype == torch.float64)
        return func(*args, **(kwargs or {}))


class Asked(nn.Module):
    """Remembers how much had been counted at each of its calls."""

    data_shape, feature_channels = (3,), 3

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.mode, self.counts = num_classes, Counting(), []

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.counts.append(self.mode.count)
        return x_t.tanh(), x_t


def counts(network: Asked, sampler: Sampler, denoiser: Denoiser, strategy: VarianceStrategy) -> list[int]:
    """At each network call, and at the end."""
    times = LogSNRTrajectory().times(denoiser.schedule, 8)
    network.counts.clear()
    with network.mode:
        sampler.sample(denoiser, strategy, times, NoiseStream(0, range(4), (3,)))
    return [*network.counts, network.mode.count]


@pytest.mark.parametrize("path", SAMPLERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("schedule", [LinearSchedule(100), VPSDESchedule(100)], ids=["linear", "vp_sde"])
def test_no_step_but_the_first_evaluates_the_schedule_or_a_table(path: Path, schedule: NoiseSchedule):
    sampler, network = instantiate(OmegaConf.load(path), num_steps=8), Asked()
    denoiser = Denoiser(network, schedule)
    strategy = BetaTilde(denoiser)
    if sampler.uses_variance:
        strategy = Analytic(denoiser, per_pixel=True)
        strategy.calibrate(denoiser, [torch.rand(8, 3)])
    seen = counts(network, sampler, denoiser, strategy)
    assert seen[0] > 0
    assert set(seen[1:]) == {seen[1]}


def test_nor_does_guidance():
    network = Asked(4)
    raw, labels = Denoiser(network, LinearSchedule(100)), torch.arange(4)
    strategy = Analytic(raw)
    strategy.calibrate(raw, [torch.rand(4, 3)], labels=labels)
    bound = ClassifierFreeGuidance(raw, 4, weight=3.0).bind(raw, strategy, labels)
    seen = counts(network, DDPMSampler(8), *bound)
    assert set(seen[1:]) == {seen[1]}


@pytest.mark.parametrize("schedule", [LinearSchedule(100), CosineSchedule(40), VPSDESchedule(30)])
def test_a_time_of_a_chain_has_the_values_of_the_same_time_alone(schedule: NoiseSchedule):
    other, denoiser = LinearSchedule(50), Denoiser(Asked(), schedule, time_offset=-1)
    times = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.01
    tables = torch.randn(2, schedule.num_steps + 1, 3, dtype=torch.float64)
    functions = [schedule.alpha, schedule.sigma, schedule.log_snr, other.alpha, denoiser.network_time]
    functions += [lambda t, table=table: schedule.interpolate(table, t) for table in tables]
    functions += [lambda t: noise_variance(schedule, t), lambda t: schedule.interpolate(table=tables[0], t=t)]
    for time, node in zip(times, chain(times), strict=True):
        for function in functions:
            assert_close(function(node), function(time), rtol=1e-14, atol=1e-15)
        assert type(node / 2) is type(schedule.alpha(node)) is Tensor
