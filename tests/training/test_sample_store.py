"""Samples on disk: every index once and in order, whatever was interrupted, damaged, or drawn in other batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optcov.denoiser import Cost
from optcov.training import SampleStore

SHAPE = (1, 3, 5)


def image(i: int) -> Tensor:
    return torch.full(SHAPE, i, dtype=torch.uint8)


def some(folder: Path, count: int = 23, batch_size: int = 5) -> SampleStore:
    return SampleStore(folder, SHAPE, count, batch_size)


def write(drawn: SampleStore, *batches: range) -> None:
    for batch in batches:
        images, cost = torch.stack([image(i) for i in batch]), Cost(3 * len(batch), 4 * len(batch))
        drawn.write(batch, images, batch.start, batch.stop, cost)


def levels(drawn: SampleStore) -> list[int]:
    """The index that each sample of the set says it is."""
    chunks = list(drawn)
    assert all(chunk.dtype == torch.uint8 and chunk.shape[1:] == SHAPE and chunk.is_contiguous() for chunk in chunks)
    return torch.cat(chunks)[:, 0, 0, 0].tolist()


def test_batches_have_one_size_and_reach_hardly_beyond(tmp_path: Path):
    assert some(tmp_path).batches == [range(i, i + 5) for i in range(0, 25, 5)]
    assert some(tmp_path, 1001, 500).batches == [range(334), range(334, 668), range(668, 1002)]
    assert some(tmp_path, 3, 500).batches == [range(3)]


def test_all_in_order_once_drawn_in_any_order(tmp_path: Path):
    drawn = some(tmp_path)
    assert drawn.missing() == drawn.batches
    write(drawn, *reversed(drawn.batches[2:]))
    assert some(tmp_path).missing() == drawn.batches[:2]  # as another process sees it
    write(drawn, *drawn.batches[:2])
    assert drawn.missing() == []
    assert levels(drawn) == list(range(23))
    assert drawn.first(7)[:, 0, 0, 0].tolist() == list(range(7))
    assert len(drawn.first(99)) == 23
    assert drawn.cost() == {"nfe": 3, "ne": 4}
    assert [len(chunk) for chunk in drawn] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 50])
def test_what_was_drawn_in_other_batches_counts(tmp_path: Path, batch_size: int):
    write(some(tmp_path), range(5), range(10, 15))
    other = some(tmp_path, batch_size=batch_size)
    missing = other.missing()
    kept = {*range(5), *range(10, 15)}
    assert missing == [batch for batch in other.batches if not kept.issuperset(i for i in batch if i < 23)]
    write(other, *missing)
    assert other.missing() == []
    assert levels(other) == list(range(23))


def test_more_and_fewer_samples_than_were_drawn(tmp_path: Path):
    write(some(tmp_path), *some(tmp_path).batches)
    fewer, more = some(tmp_path, 12), some(tmp_path, 31)
    assert fewer.missing() == []
    assert levels(fewer) == list(range(12))
    write(more, *more.missing())
    assert levels(more) == list(range(31))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(bytes([11] * 15))] ^= 1  # a pixel of sample 11
    path.write_bytes(content)


def shorter(path: Path) -> None:
    np.savez(path, images=np.zeros((4, *SHAPE), np.uint8), interval=np.zeros(2))


@pytest.mark.parametrize("damage", [cut, flipped, shorter, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_drawn_again(tmp_path: Path, damage: Callable[[Path], None]):
    drawn = some(tmp_path)
    write(drawn, *drawn.batches)
    damage(tmp_path / "000000010-000000015.npz")
    assert drawn.missing() == [range(10, 15)]
    write(drawn, range(10, 15))
    assert levels(drawn) == list(range(23))


def test_a_write_that_fails_leaves_nothing_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def half(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match=r"000000000-000000005\.npz"):
        write(some(tmp_path), range(5))
    assert list(tmp_path.iterdir()) == []


def test_a_gap_is_no_set_of_samples(tmp_path: Path):
    """As on two machines that share no folder."""
    drawn = some(tmp_path)
    write(drawn, *drawn.batches[:2], *drawn.batches[3:])
    with pytest.raises(ValueError, match="lacks sample 10"):
        list(drawn)


def test_seconds_are_those_at_work_of_whichever_process(tmp_path: Path):
    drawn, images = some(tmp_path, 20), torch.zeros(5, *SHAPE, dtype=torch.uint8)
    for batch, began, ended in zip(drawn.batches, (100, 101, 500, 503), (104, 105, 502, 504), strict=True):
        drawn.write(batch, images, began, ended, Cost())
    assert drawn.seconds() == 5 + 2 + 1


def test_calls_of_a_classifier_are_told_where_there_are_any(tmp_path: Path):
    drawn, images = some(tmp_path, 10), torch.zeros(5, *SHAPE, dtype=torch.uint8)
    for batch, calls in zip(drawn.batches, (10, 15), strict=True):
        drawn.write(batch, images, 0, 1, Cost(15, 15, calls))
    assert drawn.cost() == {"nfe": 3, "ne": 3, "classifier_calls": 2.5}


def test_none_at_all_are_refused(tmp_path: Path):
    for count, batch_size, named in ((0, 5, r"count .*\(got 0\)"), (5, 0, r"batch_size .*\(got 0\)")):
        with pytest.raises(ValueError, match=named):
            some(tmp_path, count, batch_size)
