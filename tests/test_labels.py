"""The class of each sample: drawn by frequency from the seed alone, or those requested in turn."""

import pytest
import torch
from torch.testing import assert_close

from optcov.labels import cycle_labels, draw_labels


def test_drawn_labels_follow_the_data_and_the_seed_alone():
    frequencies = torch.tensor([5, 0, 15, 80])
    labels = draw_labels(frequencies, 20_000, seed=3)
    assert torch.equal(draw_labels(frequencies, 777, seed=3), labels[:777])
    assert not torch.equal(draw_labels(frequencies, 777, seed=4), labels[:777])
    shares = labels.bincount(minlength=4) / 20_000
    assert shares[1] == 0
    assert_close(shares.double(), frequencies.double() / 100, rtol=0, atol=0.015)  # 5 standard errors


def test_wanted_labels_come_in_turn():
    assert cycle_labels([3, 5, 3], 6, 7).tolist() == [3, 5, 3, 3, 5, 3, 3]
    assert cycle_labels(0, 1, 2).tolist() == [0, 0]
    for bad in (6, [1, 6], []):
        with pytest.raises(ValueError, match="labels must"):
            cycle_labels(bad, 6, 4)
