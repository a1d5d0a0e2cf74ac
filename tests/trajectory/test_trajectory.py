"""Published formulas of which times to visit, their ends, and what is refused or said."""

import logging
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optcov.schedule import CosineSchedule, NoiseSchedule, VPSDESchedule
from optcov.trajectory import DDIMStrideTrajectory, EvenTrajectory, QuadraticTrajectory, Trajectory

trajectories = pytest.mark.parametrize("trajectory", [EvenTrajectory(), DDIMStrideTrajectory(), QuadraticTrajectory()])


def nodes(trajectory: Trajectory, total: int, num_steps: int) -> list[int]:
    times = trajectory.times(CosineSchedule(total), num_steps)
    assert times.dtype == torch.float64
    integers = (times * total).round()
    assert torch.equal(integers / total, times)  # on the grid to the last bit
    return integers.int().tolist()


@given(data=st.data(), total=st.integers(1, 2000))
def test_even_is_the_rounding_of_even_spacing_and_keeps_both_ends(data: st.DataObject, total: int):
    num_steps = data.draw(st.integers(1, total))
    result = nodes(EvenTrajectory(), total, num_steps)
    assert len(result) == num_steps
    assert result[-1] == total
    if num_steps > 1:
        assert result[0] == 1
        exact = [1 + Fraction((total - 1) * i, num_steps - 1) for i in range(num_steps)]
        assert max(abs(r - e) for r, e in zip(result, exact, strict=True)) <= Fraction(1, 2)


@pytest.mark.parametrize("num_steps", [10, 25, 50, 100, 200, 400])
def test_published_even_times(num_steps: int):
    expected = np.round(np.linspace(1, 1000, num_steps)).astype(int).tolist()
    assert nodes(EvenTrajectory(), 1000, num_steps) == expected


@pytest.mark.parametrize(("total", "num_steps"), [(1000, k) for k in (1, 2, 10, 20, 50, 100, 30, 999, 1000)] + [(7, 3)])
def test_published_ddim_stride(total: int, num_steps: int):
    assert nodes(DDIMStrideTrajectory(), total, num_steps) == list(range(1, total + 1, total // num_steps))


@pytest.mark.parametrize("num_steps", [2, 3, 10, 20, 50, 100, 1000])
@pytest.mark.parametrize("total", [1000, 4000])
def test_published_quadratic(total: int, num_steps: int):
    published = [int(v) + 1 for v in np.linspace(0, np.sqrt(total * 0.8), num_steps) ** 2]
    assert nodes(QuadraticTrajectory(), total, num_steps) == sorted(set(published))


def test_quadratic_by_hand():
    assert nodes(QuadraticTrajectory(), 1000, 3) == [1, 201, 801]
    assert nodes(QuadraticTrajectory(), 1000, 5) == [1, 51, 201, 451, 801]


@trajectories
@given(data=st.data(), total=st.integers(1, 300))
def test_times_ascend_strictly_inside_the_unit_interval(trajectory: Trajectory, data: st.DataObject, total: int):
    times = trajectory.times(VPSDESchedule(total), data.draw(st.integers(1, total)))
    assert times.ndim == 1
    assert times[0] > 0
    assert times[-1] <= 1
    assert (times.diff() > 0).all()


@trajectories
def test_one_two_and_all_steps(trajectory: Trajectory, schedule: NoiseSchedule):
    total = schedule.num_steps
    assert len(trajectory.times(schedule, 1)) == 1
    assert len(trajectory.times(schedule, 2)) == 2 + (isinstance(trajectory, DDIMStrideTrajectory) and total % 2)
    if not isinstance(trajectory, QuadraticTrajectory):  # its small times repeat
        assert torch.equal(trajectory.times(schedule, total), schedule.grid())


@trajectories
@pytest.mark.parametrize("num_steps", [0, -1, 18])
def test_refusals_name_the_key_and_the_value(trajectory: Trajectory, num_steps: int):
    with pytest.raises(ValueError, match=rf"sampler\.num_steps must .*\(got {num_steps}\)") as refusal:
        trajectory.times(CosineSchedule(17), num_steps)
    assert "17" in str(refusal.value)  # the valid range


@pytest.mark.parametrize(
    ("trajectory", "num_steps", "count"),
    [(DDIMStrideTrajectory(), 30, 31), (QuadraticTrajectory(), 100, None), (DDIMStrideTrajectory(), 10, 10)],
)
def test_another_number_of_times_is_said(caplog, trajectory: Trajectory, num_steps: int, count: int | None):
    with caplog.at_level(logging.WARNING):
        times = trajectory.times(CosineSchedule(1000), num_steps)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if len(times) == num_steps:
        assert not warnings
    else:
        assert len(warnings) == 1
        assert str(len(times)) in warnings[0]
        assert str(num_steps) in warnings[0]
    assert count in (None, len(times))
