"""The range of data: its bound on a variance, its grey levels, its two maps, and what is no range."""

import math

import pytest
import torch
from torch.testing import assert_close

from optcov.data_range import DataRange


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1.0, -1.0),
        (0.5, 0.5),
        (None, 1.0),
        (-1.0, None),
        (-math.inf, 1.0),
        (0.0, math.inf),
        (-math.inf, math.inf),
        (math.nan, 1.0),
        (0.0, math.nan),
    ],
)
def test_ends_are_two_finite_numbers_in_order_or_none(low: float | None, high: float | None):
    with pytest.raises(ValueError, match=rf"^data_range must be two finite ends, .*\(got {low} and {high}\): "):
        DataRange(low, high)


@pytest.mark.parametrize("num_levels", [1, 0, -256])
def test_grey_levels_are_two_at_least(num_levels: int):
    with pytest.raises(ValueError, match=rf"^data_range\.num_levels must be at least 2 \(got {num_levels}\): "):
        DataRange(-1.0, 1.0, num_levels)
    assert DataRange(-1.0, 1.0, 2).grey_level == 2


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.5)])
def test_a_bounded_range(low: float, high: float):
    data_range = DataRange(low, high, 11)
    assert data_range.is_bounded
    two_points = torch.tensor([low, high], dtype=torch.float64)  # nothing in the range varies more
    assert data_range.variance_bound == pytest.approx(float(two_points.var(correction=0)), rel=1e-14)
    assert data_range.grey_level == pytest.approx((high - low) / 10, rel=1e-14)
    x_0 = torch.linspace(-4, 4, 50, dtype=torch.float64)
    assert_close(data_range.clip(x_0), x_0.clamp(low, high), rtol=0, atol=0)
    unit = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    inside = torch.tensor([low, (low + high) / 2, low + 0.75 * (high - low), high], dtype=torch.float64)
    assert_close(data_range.from_unit(unit), inside, rtol=1e-14, atol=1e-15)
    assert_close(data_range.to_unit(inside), unit, rtol=1e-14, atol=1e-15)


def test_a_range_of_unknown_support():
    data_range, x_0 = DataRange(None, None), torch.tensor([-7.0, 9.0])
    assert not data_range.is_bounded
    assert data_range.variance_bound is None
    assert data_range.grey_level is None
    for same in (data_range.clip, data_range.from_unit, data_range.to_unit):
        assert same(x_0) is x_0
    assert DataRange(-1.0, 1.0, None).grey_level is None
