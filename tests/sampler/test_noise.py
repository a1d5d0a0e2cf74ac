"""The noise of sample i depends on (seed, i) alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optcov.sampler import NoiseStream


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


def test_draws_of_another_shape_come_from_the_same_streams():
    """As many numbers as a covariance needs: beside one for each pixel, such as a few for a matrix of low rank."""
    stream, alone = NoiseStream(3, [5, 2, 9], (4, 4)), NoiseStream(3, [2], (4, 4))
    mixed = [stream.draw(), stream.draw((7,)), stream.draw(()), stream.draw()]
    assert [tuple(z.shape) for z in mixed] == [(3, 4, 4), (3, 7), (3,), (3, 4, 4)]
    for z, expected in zip(mixed, [alone.draw(), alone.draw((7,)), alone.draw(()), alone.draw()], strict=True):
        assert torch.equal(z[1:2], expected)
    numbers = torch.cat([z.flatten() for z in mixed])
    assert len(numbers.unique()) == len(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape(dtype: torch.dtype):
    z = NoiseStream(0, [4, 2], (3, 5, 5), dtype=dtype).draw()
    assert z.dtype == dtype
    assert z.shape == (2, 3, 5, 5)
