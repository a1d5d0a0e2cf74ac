"""Between the first network call and the last, host and device exchange nothing: on a GPU each time would be a wait."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from optcov.denoiser import Denoiser
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance
from optcov.model import Classifier
from optcov.sampler import DDPMSampler, ImageBar, NoiseStream
from optcov.schedule import LinearSchedule, VPSDESchedule
from optcov.trajectory import LogSNRTrajectory
from optcov.variance.analytic import Analytic
from optcov.variance.fixed import BetaTilde

CONF = Path(__file__).parents[2] / "conf"
SAMPLERS, VARIANCES = (sorted((CONF / group).glob("*.yaml")) for group in ("sampler", "var"))
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
    data_shape, feature_channels = (3,), 3

    def __init__(self, mode: ReadBack, num_classes: int | None = None) -> None:
        super().__init__()
        self.mode, self.num_classes = mode, num_classes

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.mode.armed = True
        return x_t.tanh() if labels is None else (x_t + labels[:, None]).tanh(), x_t


def test_a_read_back_is_found():
    with ReadBack() as mode:
        mode.armed = True
        float(torch.ones(()))
    assert len(mode.found) == 1


@pytest.mark.parametrize("path", SAMPLERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("schedule", [LinearSchedule(100), VPSDESchedule(100)], ids=["linear", "vp_sde"])
def test_the_loop_reads_nothing_back(path: Path, schedule):
    sampler = instantiate(OmegaConf.load(path), num_steps=8)
    mode = ReadBack()
    denoiser = Denoiser(Arming(mode), schedule)
    strategy = BetaTilde(denoiser)
    if sampler.uses_variance:
        strategy = Analytic(denoiser, per_pixel=True)
        strategy.calibrate(denoiser, [torch.rand(8, 3)])
        mode.armed = False
    times = LogSNRTrajectory().times(schedule, 8)
    with mode:
        sampler.sample(denoiser, strategy, times, NoiseStream(0, range(4), (3,)))
    assert mode.found == []


@pytest.mark.parametrize(
    "guide",
    [
        Guidance,
        partial(ClassifierFreeGuidance, weight=3.0),
        partial(ClassifierGuidance, classifier=partial(Classifier, channels=8)),
    ],
    ids=["none", "classifier_free", "classifier"],
)
def test_guidance_reads_nothing_back(guide):
    mode, schedule = ReadBack(), LinearSchedule(100)
    raw = Denoiser(Arming(mode, 4), schedule)
    strategy = Analytic(raw, per_pixel=True)
    labels = torch.arange(4)
    strategy.calibrate(raw, [torch.rand(4, 3)], labels=labels)
    mode.armed = False
    denoiser, guided = guide(raw, 4).bind(raw, strategy, labels)
    with mode:
        DDPMSampler(8).sample(denoiser, guided, LogSNRTrajectory().times(schedule, 8), NoiseStream(0, range(4), (3,)))
    assert mode.found == []


@pytest.mark.parametrize("path", VARIANCES, ids=lambda path: path.stem)
def test_no_variance_reads_back_and_no_bar(path: Path):
    """Between the nodes of the schedule, where tables are interpolated."""
    mode = ReadBack()
    denoiser = Denoiser(Arming(mode), VPSDESchedule(100))
    config = OmegaConf.to_container(OmegaConf.load(path))
    if "head" in config:
        config["head"] = {"_target_": "optcov.model.ComplexHead", "_partial_": True}
    strategy = instantiate(config, denoiser=denoiser)
    if strategy.fitting == "calibrate":
        strategy.calibrate(denoiser, [torch.rand(8, 3)])
        mode.armed = False
    times = LogSNRTrajectory().times(denoiser.schedule, 8)
    with ImageBar(denoiser, 8, 4) as bar, mode:
        bar.begin(4)
        DDPMSampler(8).sample(denoiser, strategy, times, NoiseStream(0, range(4), (3,)))
        bar.end()
    assert mode.armed
    assert mode.found == []
