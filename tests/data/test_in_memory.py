"""Batches in memory: every epoch visits everything once, ranks share it, a position continues; digits and pixels."""

import pytest
import torch

from optcov.data import DigitsData, GaussianMixtureData
from optcov.data.base import DataSource, Split
from optcov.data.batches import LabelledBatch, RandomBatches
from optcov.data.pixels import from_uint8, to_uint8
from optcov.oracle import GaussianMixture
from optcov.training.data import DataModule

DATA = torch.arange(10)


def seen(*args: int, data: torch.Tensor = DATA, **kwargs: int) -> torch.Tensor:
    return torch.cat(list(RandomBatches(data, *args, **kwargs)))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 23])
def test_each_epoch_visits_everything_once(batch_size: int):
    """However batches and epochs meet; the order of each epoch is another."""
    batches = list(RandomBatches(DATA, batch_size, 50 // batch_size + 1, seed=3))
    assert {len(batch) for batch in batches} == {batch_size}
    order = torch.cat(batches)
    epochs = order[: len(order) // 10 * 10].reshape(-1, 10)
    assert len(epochs) >= 5
    assert torch.equal(epochs.sort(1).values, DATA.expand_as(epochs))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_ranks_share_the_order_of_one_process(batch_size: int):
    """Step by step, the ranks' batches together are the one batch of a single process with their total size."""
    one = torch.stack(list(RandomBatches(DATA, 3 * batch_size, 8, seed=1)))
    ranks = [torch.stack(list(RandomBatches(DATA, batch_size, 8, 1, rank, 3))) for rank in range(3)]
    assert torch.equal(torch.cat(ranks, 1), one)


def test_the_order_depends_on_the_seed_alone():
    assert torch.equal(seen(4, 10, seed=2), seen(4, 10, seed=2))
    assert not torch.equal(seen(4, 10, seed=2), seen(4, 10, seed=3))


@pytest.mark.parametrize("stop", range(12))
def test_a_position_continues(stop: int):
    whole = list(RandomBatches(DATA, 4, 12, seed=5))
    first = RandomBatches(DATA, 4, 12, seed=5)
    stream = iter(first)
    for _ in range(stop):
        next(stream)
    rest = RandomBatches(DATA, 4, 12, seed=5)
    rest.load_state_dict(first.state_dict())
    assert len(list_rest := list(rest)) == 12 - stop
    assert all(torch.equal(a, b) for a, b in zip(list_rest, whole[stop:], strict=True))


def test_length_and_contents_are_those_of_the_data():
    data = torch.randint(0, 256, (6, 1, 2, 2), dtype=torch.uint8)
    batches = RandomBatches(data, 4, 5)
    assert len(batches) == 5
    drawn = list(batches)
    assert len(drawn) == 5
    assert drawn[0].shape == (4, 1, 2, 2)
    assert drawn[0].dtype == torch.uint8
    assert all((image == data).flatten(1).all(1).any() for batch in drawn for image in batch)


def test_no_data_are_refused():
    with pytest.raises(ValueError, match="empty"):
        RandomBatches(torch.zeros(0, 1, 8, 8), 4, 10)


def test_all_grey_levels_come_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(levels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x.double()), levels)
    # up to half a level away it is still the same one; beyond the range, the end
    assert torch.equal(to_uint8(x + 0.99 / 255), levels)
    assert torch.equal(to_uint8(x - 0.99 / 255), levels)
    assert to_uint8(torch.tensor([-7.0, -1.1, 1.1, 9.0])).tolist() == [0, 0, 255, 255]
    broken = torch.zeros(5, 1, 2, 2)
    broken[1, 0, 0], broken[3, 0, 1, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 5"):
        to_uint8(broken)


def test_digits():
    data = DigitsData()
    train, test = data.load("train"), data.load("test")
    assert train.shape == (1500, 1, 8, 8)
    assert test.shape == (297, 1, 8, 8)
    assert train.dtype == test.dtype == torch.uint8
    levels = torch.cat([train, test]).unique()
    assert levels.tolist() == [round(255 * k / 16) for k in range(17)]  # no half: 255 is odd and 16 even
    assert data.data_shape == (1, 8, 8)
    assert torch.equal(data.reference(), train)
    batch = data.normalize(train[:3])
    assert batch.dtype == torch.float32
    assert (batch.min(), batch.max()) == (-1, 1)


def test_calibration_images_are_drawn_with_the_seed():
    first, again, other = DigitsData(seed=1), DigitsData(seed=1), DigitsData(seed=2)
    assert torch.equal(first.calibration(20), again.calibration(20))
    assert not torch.equal(first.calibration(20), other.calibration(20))
    drawn = to_uint8(first.calibration(20))
    assert all((image == first.train).flatten(1).all(1).any() for image in drawn)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size .*\(got 0\)"):
        DigitsData(batch_size=0)


@pytest.mark.parametrize("random_flip", [False, True])
def test_labels_stay_with_their_images(random_flip: bool):
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 1, 2, 2)
    stream = RandomBatches(
        images, 4, 20, seed=3, rank=1, world_size=2, random_flip=random_flip, labels=torch.arange(10)
    )
    plain = torch.stack(list(RandomBatches(images, 4, 20, seed=3, rank=1, world_size=2)))
    data = DataModule(DigitsData(), labelled=True)
    for (samples, labels), expected in zip(stream, plain, strict=True):
        assert torch.equal(labels, expected[:, 0, 0, 0].long())
        prepared = data.on_after_batch_transfer(LabelledBatch(samples, labels), 0)
        assert torch.equal(to_uint8(prepared.samples)[:, 0, 0, 0].long(), prepared.labels)


class Unlabelled(DataSource):
    def load(self, split: Split) -> torch.Tensor:
        return torch.zeros(3, 1, 8, 8, dtype=torch.uint8)


def test_classes_of_the_data():
    digits = DigitsData(seed=1)
    assert digits.num_classes == 10
    assert digits.labels("train").shape == (1500,)
    assert digits.labels("test").bincount().min() > 20
    found = digits.labels("train")[torch.randperm(1500, generator=torch.Generator().manual_seed(1))[:20]]
    assert torch.equal(digits.calibration_labels(20), found)
    mixture = GaussianMixture([[-0.5, 0.0], [0.5, 0.2]], [0.001, 0.001], [0.3, 0.7])
    vectors = GaussianMixtureData(mixture, num_train=100, num_test=50)
    assert vectors.num_classes == 2
    for split in ("train", "test"):
        assert torch.equal(vectors.load(split)[:, 0] > 0, vectors.labels(split) == 1)
    with pytest.raises(ValueError, match="has no classes"):
        _ = Unlabelled().num_classes
    with pytest.raises(ValueError, match=r"data\.random_flip"):  # its mirror image would be another mixture
        GaussianMixtureData(mixture, random_flip=True)
