"""The ODE's likelihood against the closed-form density of a mixture, and its inverse of the schedule."""

import math

import pytest
import torch
from optcov.flow import ProbabilityFlow
from torch.testing import assert_close

from optcov.data.pixels import to_uint8
from optcov.denoiser import Denoiser
from optcov.metric import FlowNLL
from optcov.oracle import GaussianMixture
from optcov.schedule import LinearSchedule, NoiseSchedule, VPSDESchedule
from optcov.variance.fixed import Beta

# of mean 0: what the prior N(0, I) misses is then of the order of alpha_N^2 = 4e-5
CENTRED = GaussianMixture([[-0.6], [0.3]], [0.01, 0.04], [1 / 3, 2 / 3])
PLANE = GaussianMixture([[-0.4, 0.2], [0.4, -0.2]], [[[0.04, 0.03], [0.03, 0.05]], [[0.05, -0.02], [-0.02, 0.02]]])


@pytest.mark.parametrize("schedule_of_flow", [LinearSchedule(1000), VPSDESchedule(200)], ids=["linear", "vp_sde"])
def test_density_on_a_line_is_exact(make_oracle, schedule_of_flow: NoiseSchedule):
    """In one dimension a random sign makes the trace exact."""
    denoiser = make_oracle(CENTRED, schedule_of_flow)
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    t_min = torch.tensor(1 / schedule_of_flow.num_steps, dtype=torch.float64)
    solution = ProbabilityFlow(denoiser, tolerance=1e-7).solve(x, torch.ones_like(x))
    exact = CENTRED.log_density(x, schedule_of_flow.alpha(t_min), schedule_of_flow.sigma(t_min))
    assert_close(solution.log_density, exact, rtol=0, atol=1e-3)
    assert solution.calls > 10


def test_hutchinson_is_unbiased(make_oracle):
    denoiser = make_oracle(PLANE, LinearSchedule(1000))
    schedule, t_min = denoiser.schedule, torch.tensor(0.05, dtype=torch.float64)
    x = torch.tensor([[0.1, -0.3]], dtype=torch.float64).expand(400, 2)
    probe = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sign()
    found = ProbabilityFlow(denoiser, t_min=0.05, tolerance=1e-6).solve(x, probe).log_density
    exact = PLANE.log_density(x[:1], schedule.alpha(t_min), schedule.sigma(t_min))
    error = found.std() / 400**0.5
    assert (found.mean() - exact).abs() < 4 * error + 1e-3
    assert error > 0  # the probe is at work


def test_bits_of_a_mixture(make_oracle):
    """Of 8-bit data from a mixture, the bits are its entropy in bits of a bin, up to the little noise of t_min."""
    denoiser = make_oracle(CENTRED, LinearSchedule(1000))
    x = CENTRED.sample(500, torch.Generator().manual_seed(1))
    score = FlowNLL(tolerance=1e-4).measure(denoiser, Beta(denoiser), torch.ones(1), to_uint8(x), batch_size=500)
    t_min = torch.tensor(1e-3, dtype=torch.float64)
    rounded = to_uint8(x).double() / 127.5 - 1
    smoothed = CENTRED.log_density(rounded, denoiser.schedule.alpha(t_min), denoiser.schedule.sigma(t_min))
    bits = -smoothed.mean() / math.log(2) + math.log2(127.5)
    assert score.value == pytest.approx(float(bits), abs=0.01)  # u moves x by at most 0.004 of a width of 0.1
    assert score.standard_error < 0.1
    assert score.details["network_calls"][0] > 10


def test_batches_agree_within_the_tolerance(make_oracle):
    denoiser: Denoiser = make_oracle(PLANE, LinearSchedule(1000))
    levels = to_uint8(PLANE.sample(12, torch.Generator().manual_seed(1)))
    one, other = (
        FlowNLL(tolerance=1e-4).measure(denoiser, Beta(denoiser), torch.ones(1), levels, 3, size) for size in (12, 5)
    )
    assert one.value == pytest.approx(other.value, abs=2e-3)


def test_time_of_a_signal_to_noise_ratio(schedule: NoiseSchedule):
    t = torch.cat([torch.tensor([1e-4, 0.3 / schedule.num_steps, 0.77], dtype=torch.float64), schedule.grid()])
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    beyond = torch.tensor([1e9, -1e9], dtype=torch.float64)
    assert_close(schedule.time(beyond), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1])
def test_refusals(t_min: float):
    with pytest.raises(ValueError, match=rf"t_min = {t_min}"):
        FlowNLL(t_min=t_min)
    with pytest.raises(ValueError, match=r"tolerance = 0"):
        FlowNLL(tolerance=0.0)
