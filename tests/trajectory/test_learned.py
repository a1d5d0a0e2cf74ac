"""Learned times: DDIM errs less on them than on formulas, and what a cost means."""

import pytest
import torch
from torch import Tensor

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture
from optcov.sampler import DDIMSampler, NoiseStream
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory, LearnedTrajectory, QuadraticTrajectory
from optcov.variance.base import Clean
from optcov.variance.fixed import BetaTilde

DATA = GaussianMixture([[-0.6, 0.1], [0.5, 0.3]], [0.01, 0.02], [0.4, 0.6])


@pytest.fixture(scope="module")
def learned(make_oracle) -> tuple[Denoiser, LearnedTrajectory]:
    denoiser, trajectory = make_oracle(DATA, LinearSchedule(200)), LearnedTrajectory(num_candidates=32)
    trajectory.fit(denoiser, BetaTilde(denoiser), Clean([torch.zeros(40, 2), torch.zeros(24, 2)]))
    return denoiser, trajectory


def ends(denoiser: Denoiser, times: Tensor) -> Tensor:
    sampler = DDIMSampler(len(times), clip_x0=False)
    return sampler.sample(denoiser, BetaTilde(denoiser), times, NoiseStream(7, range(200), (2,), dtype=torch.float64))


def test_ddim_errs_less_on_learned_times(learned: tuple[Denoiser, LearnedTrajectory]):
    """On other noise, against 200 steps."""
    denoiser, trajectory = learned
    fine = ends(denoiser, EvenTrajectory().times(denoiser.schedule, 200))
    for count in (4, 6):
        errors = [
            float((ends(denoiser, each.times(denoiser.schedule, count)) - fine).norm(dim=1).mean())
            for each in (trajectory, EvenTrajectory(), QuadraticTrajectory())
        ]
        assert errors[0] < 0.9 * min(errors[1:])


def test_all_candidates_cost_nothing(learned: tuple[Denoiser, LearnedTrajectory]):
    """The path through all of them is the fine chain itself; fewer cost more."""
    totals = learned[1]._paths.totals
    assert totals[-1] == pytest.approx(0, abs=1e-9)
    assert (totals[:-1] > totals[1:]).all()


def test_it_is_refused_before_its_fit_and_beyond_its_candidates():
    schedule = LinearSchedule(200)
    with pytest.raises(ValueError, match=r"^trajectory=learned must be fitted"):
        LearnedTrajectory().times(schedule, 5)
    with pytest.raises(ValueError, match=r"^sampler\.num_steps must be at most the 4 candidates .* \(got 5\): "):
        LearnedTrajectory(num_candidates=4).check(schedule, 5)
    for name in ("num_images", "num_candidates"):
        with pytest.raises(ValueError, match=rf"^trajectory\.{name} must be at least 2 \(got 1\): "):
            LearnedTrajectory(**{name: 1})
    LearnedTrajectory(num_candidates=None).check(schedule, 200)
