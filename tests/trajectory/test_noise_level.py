"""Times placed by their noise level: even where they say, ends to the last bit, between the nodes of any schedule."""

import pytest
import torch
from torch.testing import assert_close

from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule
from optcov.trajectory import KarrasTrajectory, LogSNRTrajectory
from optcov.trajectory.log_snr import NoiseLevelTrajectory

TRAJECTORIES = [LogSNRTrajectory(), KarrasTrajectory(), KarrasTrajectory(1.0), LogSNRTrajectory(0.9, 0.3)]


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 40])
def test_ascending_between_exact_ends(schedule: NoiseSchedule, trajectory: NoiseLevelTrajectory, num_steps: int):
    times = trajectory.times(schedule, num_steps)
    assert times.dtype == torch.float64
    assert times.shape == (num_steps,)
    assert (times.diff() > 0).all()
    assert times[-1] == trajectory.t_max
    if num_steps > 1:
        assert times[0] == (trajectory.t_min or 1 / schedule.num_steps)


def test_log_snr_is_even(schedule: NoiseSchedule):
    steps = schedule.log_snr(LogSNRTrajectory().times(schedule, 9)).diff()
    assert_close(steps, steps.mean().expand(8), rtol=1e-6, atol=0)  # log alpha near 0 holds half the digits of t


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_published_formula_of_karras(schedule: NoiseSchedule, rho: float):
    times = KarrasTrajectory(rho).times(schedule, 6)
    ratio = schedule.sigma(times) / schedule.alpha(times)
    i = torch.arange(6, dtype=torch.float64)  # Eq. 5 counts down from sigma_max
    low, high = ratio[0] ** (1 / rho), ratio[-1] ** (1 / rho)
    assert_close(ratio.flip(0), (high + i / 5 * (low - high)) ** rho, rtol=1e-6, atol=0)


def test_more_times_than_steps_of_the_schedule():
    assert len(LogSNRTrajectory().times(CosineSchedule(4), 30).unique()) == 30


@pytest.mark.parametrize(
    ("trajectory", "arguments", "message"),
    [
        (LogSNRTrajectory, {"t_max": 1.5}, r"trajectory\.t_max must .* \(got 1\.5\)"),
        (LogSNRTrajectory, {"t_max": 0.0}, r"trajectory\.t_max must .* \(got 0\.0\)"),
        (KarrasTrajectory, {"t_min": 1.0}, r"trajectory\.t_min must .* \(got 1\.0\)"),
        (KarrasTrajectory, {"t_min": -0.1}, r"trajectory\.t_min must .* \(got -0\.1\)"),
        (KarrasTrajectory, {"rho": 0.5}, r"trajectory\.rho must .* \(got 0\.5\)"),
        (KarrasTrajectory, {"rho": float("nan")}, r"trajectory\.rho must .* \(got nan\)"),
    ],
)
def test_refusals_name_the_argument_and_the_value(trajectory: type, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        trajectory(**arguments)


def test_a_trajectory_that_does_not_fit_the_schedule_is_refused():
    with pytest.raises(ValueError, match=r"trajectory\.t_max must .* sampler\.num_steps = 5 \(got 0\.01\)"):
        LogSNRTrajectory(0.01).times(LinearSchedule(50), 5)
    with pytest.raises(ValueError, match=r"sampler\.num_steps must be at least 1 \(got 0\)"):
        LogSNRTrajectory().times(LinearSchedule(50), 0)


@pytest.mark.parametrize("trajectory", [LogSNRTrajectory(0.98), KarrasTrajectory(t_max=0.98)])
@pytest.mark.parametrize("schedule", [FlowSchedule(1000), VESchedule(1000, 0.01, 50.0)], ids=["flow", "ve"])
def test_straight_and_exploding_paths_are_placed_by_the_same_formulas(
    schedule: NoiseSchedule, trajectory: NoiseLevelTrajectory
):
    times = trajectory.times(schedule, 7)
    assert (times.diff() > 0).all()
    assert (times[0], times[-1]) == (1e-3, 0.98)
    even = schedule.log_snr(times)
    if isinstance(trajectory, KarrasTrajectory):
        even = (-even / 14).exp()  # (sigma / alpha)^{1/7}
    assert_close(even.diff(), even.diff().mean().expand(6), rtol=1e-7, atol=0)


@pytest.mark.parametrize("trajectory", [LogSNRTrajectory(), KarrasTrajectory()])
def test_a_path_that_ends_without_signal_needs_an_earlier_last_time(trajectory: NoiseLevelTrajectory):
    with pytest.raises(ValueError, match=r"trajectory\.t_max must leave some signal .*\(got 1\.0.*t_max=0\.999"):
        trajectory.check(FlowSchedule(1000), 7)
