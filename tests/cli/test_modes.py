"""``sample.py mode=...``: what the pictures show, on an untrained network of small digits."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor, nn

from optcov.data import DigitsData
from optcov.data.base import DataSource, Split
from optcov.data.pixels import from_uint8, to_uint8
from optcov.denoiser import Denoiser
from optcov.parts import Parts
from optcov.report.modes import ImageInterpolation, Interpolation, Mode, TrajectoryPicture, to_picture
from optcov.sampler import DDPMSampler, EulerSampler, HeunSampler, NoiseStream, Sampler
from optcov.schedule import CosineSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import BetaTilde

CPU = torch.device("cpu")


class Smooth(nn.Module):
    """A contraction, whose flow can be turned round."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape, self.feature_channels, self.asked = shape, 1, 0

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return 0.6 * x_t.tanh(), x_t


class Pictures(DataSource):
    def load(self, split: Split) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.randint(0, 256, (20, 1, 8, 8), generator=generator, dtype=torch.uint8)


def parts(sampler: Sampler, shape: tuple[int, ...] = (1, 8, 8)) -> Parts:
    schedule = CosineSchedule(100)
    denoiser = Denoiser(Smooth(shape), schedule)
    return Parts(Pictures(), denoiser, BetaTilde(denoiser), sampler, EvenTrajectory(), {})


def table(path: Path, rows: int, columns: int) -> Tensor:
    """The images of a strip, each 8 x 8 with a line and enlarged sevenfold; uint8 ``[rows, columns, 8, 8]``."""
    with Image.open(path) as picture:
        assert picture.size == (columns * 63, rows * 63)
        small = picture.convert("L").resize((columns * 9, rows * 9), Image.Resampling.NEAREST)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.reshape(rows, 9, columns, 9).permute(0, 2, 1, 3)[..., :8, :8]


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_in_place(channels: int):
    images = torch.rand(2, 3, channels, 64, 64) * 2 - 1
    picture = to_picture(images, DigitsData())
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(130, 195, channels)
    assert torch.equal(pixels[65:129, 130:194].permute(2, 0, 1), to_uint8(images[1, 2]))


@pytest.mark.parametrize("sampler", [EulerSampler(6), DDPMSampler(6)])
def test_ends_of_an_interpolation_are_the_samples_of_their_seeds(tmp_path: Path, sampler: Sampler):
    made = parts(sampler)
    Interpolation(rows=2, frames=5).draw(made, tmp_path, seed=3, device=CPU)
    strip = table(tmp_path / "interpolation.png", 2, 5)
    if isinstance(sampler, EulerSampler):
        for column, indices in ((0, range(2)), (4, range(2, 4))):
            noise = NoiseStream(3, indices, (1, 8, 8))
            expected = sampler.sample(made.denoiser, made.strategy, made.times, noise)
            assert torch.equal(strip[:, column], to_uint8(expected[:, 0]))
    assert len(strip.flatten(0, 1).unique(dim=0)) == 10


def test_images_stand_at_both_ends_and_come_back(tmp_path: Path):
    made = parts(EulerSampler(40))
    ImageInterpolation(rows=2, frames=3, corrections=30).draw(made, tmp_path, seed=0, device=CPU)
    strip = table(tmp_path / "interpolation.png", 2, 5)
    images = to_uint8(made.data.calibration(4))[:, 0]
    assert torch.equal(strip[:, 0], images[:2])
    assert torch.equal(strip[:, 4], images[2:])
    told = json.loads((tmp_path / "interpolation.json").read_text())
    shown = from_uint8(strip[:, [1, 3]]) - from_uint8(strip[:, [0, 4]])
    assert told["inversion_rmse_grey_levels"] < 1
    assert shown.abs().max() * 127.5 < 3


@pytest.mark.parametrize(("sampler", "calls"), [(DDPMSampler(12), 12), (HeunSampler(5), 9)])
def test_a_trajectory_begins_with_noise_and_ends_with_the_sample(tmp_path: Path, sampler: Sampler, calls: int):
    made = parts(sampler)
    TrajectoryPicture(rows=2, frames=4).draw(made, tmp_path, seed=1, device=CPU)
    assert made.denoiser.network.asked == calls
    strip = table(tmp_path / "trajectory.png", 4, 4)
    start = NoiseStream(1, range(2), (1, 8, 8)).draw()
    x_0 = sampler.sample(made.denoiser, made.strategy, made.times, NoiseStream(1, range(2), (1, 8, 8)))
    assert torch.equal(strip[0::2, 0], to_uint8(start[:, 0]))  # x_t and the predicted x_0 take turns
    assert torch.equal(strip[0::2, -1], to_uint8(x_0[:, 0]))
    assert torch.equal(strip[1::2, -1], to_uint8(x_0[:, 0]))
    with Image.open(tmp_path / "trajectory.gif") as animation:
        assert 2 < sum(1 for _ in ImageSequence.Iterator(animation)) <= calls + 1  # Pillow joins frames that are alike
    assert not made.denoiser._forward_hooks


def test_vectors_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data must be images .*\(got shape \(3,\)\)"):
        TrajectoryPicture().draw(parts(EulerSampler(2), (3,)), tmp_path, 0, CPU)


@pytest.mark.parametrize(
    ("mode", "argument", "value"),
    [(Interpolation, "rows", 0), (TrajectoryPicture, "frames", 1), (ImageInterpolation, "corrections", -1)],
)
def test_refusals_name_the_argument_and_the_value(mode: type[Mode], argument: str, value: int):
    with pytest.raises(ValueError, match=rf"mode\.{argument} must .*\(got {value}\)"):
        mode(**{argument: value})


def test_more_rows_than_images_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"mode\.rows must .* images, 20 \(got 11\)"):
        ImageInterpolation(rows=11).draw(parts(EulerSampler(2)), tmp_path, 0, CPU)
