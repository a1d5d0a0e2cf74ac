"""Published formulas of which times to visit, their ends, and what is refused or said."""

import logging
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from optcov.schedule import CosineSchedule, NoiseSchedule, VPSDESchedule
from optcov.trajectory import (
    DDIMStrideTrajectory,
    EvenTrajectory,
    LeadingTrajectory,
    LinspaceTrajectory,
    ListTrajectory,
    PowerTrajectory,
    QuadraticTrajectory,
    TrailingTrajectory,
    Trajectory,
)

TRAJECTORIES = [
    EvenTrajectory(),
    DDIMStrideTrajectory(),
    QuadraticTrajectory(),
    LinspaceTrajectory(),
    LeadingTrajectory(),
    TrailingTrajectory(),
    PowerTrajectory(),
    PowerTrajectory(3.0, t_min=0.001),
]
trajectories = pytest.mark.parametrize("trajectory", TRAJECTORIES)


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
    if not isinstance(trajectory, QuadraticTrajectory | PowerTrajectory):  # their small times repeat
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


@pytest.mark.parametrize(
    ("spacing", "trajectory", "settings"),
    [
        ("linspace", LinspaceTrajectory(), {}),
        ("leading", LeadingTrajectory(), {}),
        ("leading", LeadingTrajectory(1), {"steps_offset": 1}),
        ("trailing", TrailingTrajectory(), {}),
    ],
    ids=["linspace", "leading", "leading_1", "trailing"],
)
@pytest.mark.parametrize("total", [1000, 50])
def test_spacings_of_diffusers(spacing: str, trajectory: Trajectory, settings: dict[str, int], total: int):
    """Timestep n - 1 of theirs is our n; at every K for which theirs has K timesteps within 0..N - 1."""
    peer = DDPMScheduler(num_train_timesteps=total, timestep_spacing=spacing, **settings)
    compared = 0
    for num_steps in range(1, total, 1 if total == 50 else 7):
        peer.set_timesteps(num_steps)
        theirs = (peer.timesteps.flip(0) + 1).tolist()
        if len(theirs) == num_steps and theirs[0] >= 1 and theirs[-1] <= total:  # arange may round to one more, -1
            assert nodes(trajectory, total, num_steps) == theirs
            compared += 1
    assert compared > 40


def test_the_last_time_of_an_offset_lies_on_the_grid():
    with pytest.raises(ValueError, match=r"trajectory\.offset must .* \(got 1, which leads to 51\)"):
        LeadingTrajectory(1).times(CosineSchedule(50), 50)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_powers_are_even_in_a_root_of_time(power: float):
    """To half a step of the grid: from 0, and from a first time as EDM's Eq. 5 does."""
    i = np.arange(1, 11)
    assert nodes(PowerTrajectory(power), 1000, 10) == np.round(1000 * (i / 10) ** power).astype(int).tolist()
    low, high = 0.004 ** (1 / power), 0.8 ** (1 / power)
    expected = np.round(1000 * (high + (10 - i) / 9 * (low - high)) ** power).astype(int).tolist()
    assert nodes(PowerTrajectory(power, 0.8, 0.004), 1000, 10) == expected
    assert nodes(PowerTrajectory(power, 0.8, 0.004), 1000, 1) == [800]


def test_listed_times_are_those_given():
    schedule = CosineSchedule(1000)
    assert ListTrajectory([0.1, 0.55, 1.0]).times(schedule, 3).tolist() == [0.1, 0.55, 1.0]
    assert nodes(ListTrajectory(nodes=[1, 20, 1000]), 1000, 3) == [1, 20, 1000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"trajectory\.times must be given"),
        ({"times": [0.5, 1.0]}, r"sampler\.num_steps must be 2, .* \(got 3\)"),
        ({"nodes": [1, 5, 1001]}, r"trajectory\.nodes must be at most .* 1000 \(got 1001\)"),
        ({"times": [0.5, 0.4, 1.0]}, r"trajectory\.times must be times that rise"),
        ({"times": [0.5, 0.7, 1.1]}, r"trajectory\.times must be times that rise"),
        ({"times": []}, r"trajectory\.times must be times that rise"),
        ({"nodes": [0, 5, 6]}, r"trajectory\.nodes must be integers that rise"),
        ({"times": [0.1], "nodes": [1]}, "are both given"),
    ],
)
def test_lists_that_are_no_times_are_refused(arguments: dict[str, list], message: str):
    with pytest.raises(ValueError, match=message):
        ListTrajectory(**arguments).times(CosineSchedule(1000), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerTrajectory(0.5), r"trajectory\.power must .* \(got 0\.5\)"),
        (lambda: PowerTrajectory(t_max=1.5), r"trajectory\.t_max must .* \(got 1\.5\)"),
        (lambda: PowerTrajectory(t_min=1.0), r"trajectory\.t_min must .* \(got 1\.0\)"),
        (lambda: LeadingTrajectory(-1), r"trajectory\.offset must .* \(got -1\)"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Trajectory], message: str):
    with pytest.raises(ValueError, match=message):
        make()
