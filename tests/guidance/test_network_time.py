"""Whatever reads a time reads the one that the network is fed: heads and classifiers, too."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.guidance import ClassifierFreeGuidance, ClassifierGuidance
from optcov.likelihood import VariationalBound
from optcov.parameterization import Velocity
from optcov.sampler import DDPMSampler, NoiseStream
from optcov.schedule import FlowSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import TrainedHead
from optcov.variance.iddpm import LearnedRange
from optcov.variance.npr_dpm import NPR
from optcov.variance.profile import variance_profile
from optcov.variance.sn_dpm import SN

COUNT = 6


class Recorder(nn.Module):
    """A network, head or classifier that notes the times it is fed."""

    data_shape, feature_channels = (2,), 2

    def __init__(self, *shapes: object, num_classes: int | None = None, logits: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.logits = num_classes, logits
        self.times: list[Tensor] = []

    def note(self, time: Tensor, count: int) -> None:
        self.times.append(time.detach().double().expand(count))


class RecordingNetwork(Recorder):
    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.note(time, len(x_t))
        return 0.5 * x_t, x_t


class RecordingHead(Recorder):
    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        self.note(network_time, len(features))
        return 0.3 + 0 * features


class RecordingClassifier(Recorder):
    def forward(self, x_t: Tensor, network_time: Tensor) -> Tensor:
        self.note(network_time, len(x_t))
        return torch.stack([x_t[:, 0], -x_t[:, 1]], 1)


SCHEDULES = [LinearSchedule(1000), LinearSchedule(50), FlowSchedule(1000)]
conventions = pytest.mark.parametrize("time_offset", [0, -1, 7])
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear-1000", "linear-50", "flow-1000"])
heads = pytest.mark.parametrize("kind", [NPR, SN, LearnedRange])


def make(schedule: NoiseSchedule, time_offset: int, num_classes: int | None = None) -> tuple[Denoiser, Recorder]:
    network = RecordingNetwork(num_classes=num_classes)
    return Denoiser(network, schedule, Velocity(), time_offset=time_offset).eval(), network


def fed(schedule: NoiseSchedule, times: Tensor, time_offset: int) -> Tensor:
    """``(n + time_offset) * 1000 / N`` of times n / N, for each of COUNT samples."""
    return ((times * schedule.num_steps).round() + time_offset)[:, None].expand(-1, COUNT) * 1000 / schedule.num_steps


def noise() -> NoiseStream:
    return NoiseStream(0, range(COUNT), (2,), dtype=torch.float64)


@heads
@schedules
@conventions
def test_heads_are_fed_the_networks_time_while_sampling_and_in_the_bound(
    kind: type[TrainedHead], schedule: NoiseSchedule, time_offset: int
):
    denoiser, network = make(schedule, time_offset)
    strategy, times = kind(denoiser, RecordingHead), EvenTrajectory().times(schedule, 4)
    expected = fed(schedule, times, time_offset)
    DDPMSampler(4).sample(denoiser, strategy, times, noise())
    assert_close(torch.stack(network.times), expected.flip(0), rtol=1e-12, atol=1e-9)
    assert_close(
        torch.stack(strategy.head.times), expected.flip(0)[:-1], rtol=1e-12, atol=1e-9
    )  # the last adds no noise
    network.times.clear()
    strategy.head.times.clear()
    VariationalBound(denoiser, strategy).terms(torch.zeros(COUNT, 2, dtype=torch.float64), times, noise())
    assert_close(torch.stack(network.times), expected, rtol=1e-12, atol=1e-9)
    assert_close(torch.stack(strategy.head.times), expected[1:], rtol=1e-12, atol=1e-9)


@heads
@conventions
def test_heads_are_fed_the_networks_time_in_their_loss_and_in_the_profile(kind: type[TrainedHead], time_offset: int):
    schedule = LinearSchedule(50)
    denoiser, network = make(schedule, time_offset)
    strategy = kind(denoiser, RecordingHead)
    n = torch.tensor([1, 2, 20, 49, 50, 1])
    x_t = torch.ones(COUNT, 2, dtype=torch.float64)
    strategy.loss(denoiser, denoiser(x_t, schedule.levels(n.double() / 50)), x_t)
    for recorder in (network, strategy.head):
        (times,) = recorder.times
        assert_close(times, (n + time_offset).double() * 20, rtol=1e-12, atol=1e-9)
        recorder.times.clear()
    variance_profile(denoiser, strategy, x_t, 0.1, num_times=5)
    assert_close(torch.stack(strategy.head.times), torch.stack(network.times), rtol=0, atol=0)


@schedules
@conventions
def test_a_classifier_is_fed_the_networks_time(schedule: NoiseSchedule, time_offset: int):
    denoiser, network = make(schedule, time_offset)
    guidance = ClassifierGuidance(denoiser, 2, RecordingClassifier, weight=2.0)
    times, labels = EvenTrajectory().times(schedule, 4), torch.arange(COUNT) % 2
    strategy = NPR(denoiser, RecordingHead)
    DDPMSampler(4).sample(denoiser, strategy, times, noise(), guidance=guidance, condition=labels)
    expected = fed(schedule, times, time_offset).flip(0)
    assert_close(torch.stack(network.times), expected, rtol=1e-12, atol=1e-9)
    assert_close(torch.stack(guidance.classifier.times), expected, rtol=1e-12, atol=1e-9)
    assert_close(torch.stack(strategy.head.times), expected[:-1], rtol=1e-12, atol=1e-9)


@conventions
def test_classifier_free_guidance_feeds_both_answers_the_same_time(time_offset: int):
    schedule = LinearSchedule(50)
    denoiser, network = make(schedule, time_offset, num_classes=2)
    guidance, strategy = ClassifierFreeGuidance(denoiser, 2, 3.0), NPR(denoiser, RecordingHead)
    level = schedule.levels(torch.tensor([1, 2, 20, 49, 50, 1]).double() / 50)
    x_t = torch.ones(COUNT, 2, dtype=torch.float64)
    prediction = guidance.predict(denoiser, strategy, x_t, level, torch.zeros(COUNT, dtype=torch.long))
    (times,) = network.times
    assert_close(times.reshape(2, COUNT), (level.t * 50 + time_offset).expand(2, -1) * 20, rtol=1e-12, atol=1e-9)
    for own in (prediction.start, prediction.end):
        strategy.covariance(denoiser, own)
    assert_close(torch.stack(strategy.head.times), times.reshape(2, COUNT), rtol=0, atol=0)
