"""The noise of sample i depends on (seed, i) alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.sampler import DDPMSampler, NoiseStream, sample
from optcov.schedule import CosineSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import Beta


def draws(seed: int, indices: list[int], count: int = 3, shape: tuple[int, ...] = (2, 3)) -> Tensor:
    stream = NoiseStream(seed, indices, shape)
    return torch.stack([stream.draw() for _ in range(count)], 1)


@given(
    seed=st.integers(0, 2**31 - 1),
    indices=st.lists(st.integers(0, 100_000), min_size=1, max_size=6, unique=True),
    cut=st.integers(0, 6),
)
def test_batches_and_order_do_not_matter(seed: int, indices: list[int], cut: int):
    together = draws(seed, indices)
    assert together.shape == (len(indices), 3, 2, 3)
    parts = [draws(seed, part) for part in (indices[:cut], indices[cut:]) if part]
    assert torch.equal(together, torch.cat(parts))
    assert torch.equal(together.flip(0), draws(seed, indices[::-1]))


def test_seeds_indices_and_calls_give_different_noise():
    """No two of 20 x 20 x 4 draws alike, neighbours in seed and index included."""
    everything = torch.cat([draws(seed, list(range(20)), 4, (2,)).reshape(-1, 2) for seed in range(20)])
    assert len(everything.unique(dim=0)) == len(everything) == 1600


def test_noise_is_white():
    z = draws(7, list(range(400)), 5, (10,)).double()  # [400, 5, 10]
    assert abs(z.mean()) < 4 / z.numel() ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / z.numel()) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / z.numel()) ** 0.5
    for other in (z.roll(1, 0), z.roll(1, 1), z.roll(1, 2)):  # between samples, calls, and pixels
        assert abs((z * other).mean()) < 4 / z.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape(dtype: torch.dtype):
    z = NoiseStream(0, [4, 2], (3, 5, 5), dtype=dtype).draw()
    assert z.dtype == dtype
    assert z.shape == (2, 3, 5, 5)


class Elementwise(nn.Module):
    """A network whose arithmetic can not depend on the batch."""

    data_shape, feature_channels = (2, 4, 4), 2

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x_t.tanh(), x_t


def test_images_do_not_depend_on_the_batch_size():
    schedule = CosineSchedule(30)
    denoiser = Denoiser(Elementwise(), schedule)
    times = EvenTrajectory().times(schedule, 4)

    def images(count: int, batch_size: int, seed: int = 3) -> Tensor:
        return sample(denoiser, Beta(denoiser), DDPMSampler(4), times, count, seed, batch_size, progress=False)

    whole = images(11, 256)
    assert whole.shape == (11, 2, 4, 4)
    assert whole.dtype == torch.float32
    assert whole.abs().max() <= 1
    for batch_size in (1, 4, 11):
        assert torch.equal(images(11, batch_size), whole)
    assert torch.equal(images(5, 3), whole[:5])
    assert not torch.equal(images(11, 256, seed=4), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 11


def test_sample_is_the_sampler_on_the_streams():
    schedule = CosineSchedule(30)
    denoiser = Denoiser(Elementwise(), schedule)
    times = EvenTrajectory().times(schedule, 4)
    direct = DDPMSampler(4).sample(denoiser, Beta(denoiser), times, NoiseStream(3, range(6), (2, 4, 4)))
    batched = sample(denoiser, Beta(denoiser), DDPMSampler(4), times, 6, 3, 4, progress=False)
    assert_close(batched, direct, rtol=0, atol=0)
