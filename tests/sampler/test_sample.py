"""``sample()``, the plain call: the same images in any batches, autocast, a compiled network, and a bar of images."""

import io

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.model import SimpleHead, UNet
from optcov.registry import make, options
from optcov.sampler import DDPMSampler, HeunSampler, ImageBar, NoiseStream, Sampler, sample
from optcov.schedule import CosineSchedule, LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.sn_dpm import SN


class Elementwise(nn.Module):
    """A network whose arithmetic cannot depend on the batch."""

    data_shape, feature_channels = (2, 4, 4), 2

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x_t.tanh(), x_t


def unet() -> tuple[Denoiser, VarianceStrategy]:
    """An untrained network with a head, none of whose outputs is 0."""
    torch.manual_seed(0)
    network = UNet((1, 8, 8), channels=8, channel_mult=[1])
    nn.init.normal_(network.output.weight, std=0.05)
    denoiser = Denoiser(network, LinearSchedule(1000))
    strategy = SN(denoiser, SimpleHead)
    nn.init.normal_(strategy.head.output.weight, std=0.05)
    return denoiser, strategy


def draw(
    denoiser: Denoiser, strategy: VarianceStrategy, sampler: Sampler, count: int, batch_size: int, seed: int = 3
) -> Tensor:
    times = EvenTrajectory().times(denoiser.schedule, sampler.num_steps)
    return sample(denoiser, strategy, sampler, times, count, seed, batch_size, progress=False)


@pytest.mark.parametrize("name", options("sampler"))
def test_images_do_not_depend_on_the_batch_size(name: str):
    """To the last bit, as far as the sampler is concerned."""
    sampler = make("sampler", name, num_steps=4)
    denoiser = Denoiser(Elementwise(), CosineSchedule(30))
    strategy = Beta(denoiser) if sampler.uses_variance else BetaTilde(denoiser)
    whole = draw(denoiser, strategy, sampler, 11, 256)
    assert whole.shape == (11, 2, 4, 4)
    assert whole.dtype == torch.float32
    for batch_size in (1, 4, 11):
        assert torch.equal(draw(denoiser, strategy, sampler, 11, batch_size), whole)
    assert torch.equal(draw(denoiser, strategy, sampler, 5, 3), whole[:5])
    assert not torch.equal(draw(denoiser, strategy, sampler, 11, 256, seed=4), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 11


def test_nor_do_those_of_a_network_but_for_its_rounding():
    """A convolution adds up in another order in another batch: 1e-7 of x_1, which the first step divides by
    alpha_1 = 0.006.  Measured 3e-6; a grey level is 8e-3.
    """
    denoiser, strategy = unet()
    whole = draw(denoiser, strategy, DDPMSampler(5), 11, 11)
    for batch_size in (1, 3, 4):
        assert_close(draw(denoiser, strategy, DDPMSampler(5), 11, batch_size), whole, rtol=0, atol=2e-5)


def test_sample_is_the_sampler_on_the_streams():
    schedule = CosineSchedule(30)
    denoiser = Denoiser(Elementwise(), schedule)
    times = EvenTrajectory().times(schedule, 4)
    direct = DDPMSampler(4).sample(denoiser, Beta(denoiser), times, NoiseStream(3, range(6), (2, 4, 4)))
    assert torch.equal(draw(denoiser, Beta(denoiser), DDPMSampler(4), 6, 4), direct)


def test_under_autocast_the_images_stay_in_single_precision():
    denoiser, strategy = unet()
    exact = draw(denoiser, strategy, DDPMSampler(5), 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = draw(denoiser, strategy, DDPMSampler(5), 8, 4)
    assert rounded.dtype == torch.float32
    assert len(rounded.unique()) > rounded.numel() / 2  # bfloat16 has 256 numbers between 0.5 and 1
    assert 0 < (rounded - exact).abs().mean() < 0.01


def test_a_compiled_network_is_compiled_once():
    """Whatever is left over for the last batch."""
    denoiser, strategy = unet()
    expected = draw(denoiser, strategy, DDPMSampler(3), 11, 4)
    torch._dynamo.reset()
    counter = CompileCounter()
    denoiser.network.compile(backend=counter, fullgraph=True)
    assert_close(draw(denoiser, strategy, DDPMSampler(3), 11, 4), expected, rtol=0, atol=2e-5)
    assert counter.frame_count == 1


def test_samples_can_be_trained_on():
    denoiser, strategy = unet()
    x = draw(denoiser, strategy, DDPMSampler(2), 3, 2).requires_grad_()
    denoiser(x, denoiser.levels(torch.tensor(0.5))).x0.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bad_counts_are_refused():
    denoiser, strategy = unet()
    for count, batch_size, named in ((0, 4, "count"), (-1, 4, "count"), (4, 0, "batch_size")):
        got = min(count, batch_size)
        with pytest.raises(ValueError, match=rf"^{named} must be at least 1 \(got {got}\): "):
            draw(denoiser, strategy, DDPMSampler(2), count, batch_size)


def test_the_bar_counts_images_and_moves_with_every_network_call(monkeypatch: pytest.MonkeyPatch):
    """7 images in batches of 4 and 3, on 3 network calls each."""
    seen = []
    move = ImageBar._move

    def watched(bar: ImageBar, images: float) -> None:
        move(bar, images)
        seen.append(bar.bar.n)

    monkeypatch.setattr(ImageBar, "_move", watched)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    denoiser = Denoiser(Elementwise(), CosineSchedule(30))
    times = EvenTrajectory().times(denoiser.schedule, 2)
    sample(denoiser, BetaTilde(denoiser), HeunSampler(2), times, 7, batch_size=4)
    assert seen == [1, 2, 4, 4, 5, 6, 7, 7]  # of 8: the last batch reaches beyond


def test_the_bar_of_several_processes_and_of_what_was_there(monkeypatch: pytest.MonkeyPatch):
    """Each of two processes draws 10 of the 60 that are left, in steps that count for both."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with ImageBar(2, 100, done=40, processes=2) as bar:
        seen = [(state, bar.bar.n) for _ in range(4) for state in bar.watch("ab", 10)]
        assert bar.bar.n == 100
    assert seen == [("a", 50), ("b", 60), ("a", 70), ("b", 80), ("a", 90), ("b", 100), ("a", 100), ("b", 100)]


def test_a_solver_of_fewer_steps_than_told_fills_its_share_of_the_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with ImageBar(5, 20) as bar:
        assert list(bar.watch("abc", 10)) == ["a", "b", "c"]
        assert bar.bar.n == 10


def test_without_progress_nothing_is_said(capfd: pytest.CaptureFixture[str]):
    draw(*unet(), DDPMSampler(2), 3, 2)
    assert "".join(capfd.readouterr()) == ""
