"""The ODE's likelihood against the closed-form density of mixtures on every path, and what the prior costs it."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from optcov.data.pixels import to_uint8
from optcov.denoiser import Denoiser
from optcov.likelihood import ProbabilityFlow
from optcov.likelihood.ode import LARGEST_LOG_RATIO
from optcov.metric import FlowNLL
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import X0
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.schedule.levels import NoiseLevels
from optcov.variance.fixed import Beta

# of mean 0: what the prior N(0, I) misses is then of the order of alpha_N^2 = 4e-5
CENTRED = GaussianMixture([[-0.6], [0.3]], [0.01, 0.04], [1 / 3, 2 / 3])
PLANE = GaussianMixture([[-0.4, 0.2], [0.4, -0.2]], [[[0.04, 0.03], [0.03, 0.05]], [[0.05, -0.02], [-0.02, 0.02]]])


PATHS = [LinearSchedule(1000), VPSDESchedule(200), CosineSchedule(1000), FlowSchedule(1000), VESchedule(1000)]


def oracle(mixture: GaussianMixture, path: NoiseSchedule) -> Denoiser:
    return Denoiser(
        OracleNetwork((mixture.dim,), mixture, path, parameterization=X0(), num_features=1), path, X0()
    ).eval()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_density_on_a_line_is_exact(path: NoiseSchedule):
    """In one dimension a random sign makes the trace exact."""
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    first = path.levels(torch.tensor(1 / path.num_steps, dtype=torch.float64))
    solution = ProbabilityFlow(oracle(CENTRED, path), tolerance=1e-6).solve(x, torch.ones_like(x))
    exact = CENTRED.log_density(x, first.alpha, first.sigma)
    assert_close(solution.log_density, exact, rtol=0, atol=1e-3)
    assert solution.calls > 10


@pytest.mark.parametrize(
    ("path", "mean", "t_min"),
    [
        *((path, 0.3, None) for path in PATHS),
        *((VESchedule(1000, 0.01, sigma_max), 0.3, None) for sigma_max in (2.0, 1000.0, 1e6)),
        *((path, 0.0, 0.3) for path in (LinearSchedule(1000), FlowSchedule(1000), VESchedule(1000))),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'sigma_max', '')}",
)
def test_what_is_missed_is_the_prior(path: NoiseSchedule, t_min: float | None, mean: float):
    """All that sets the ODE of an exact network apart from the data's density is the Gaussian it ends at.

    The ODE carries N(mean, 0.25) quantile by quantile to the exact marginal at its end, so that the error there is
    ``log prior(x_T) - log q(x_T)``, to first order ``alpha_T mean z / sigma_T`` at z standard deviations: with
    sigma_T = 80 and a mean of 0.3 it is 0.011 at z = 3, of either sign, and 7e-6 in the mean.
    """
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    first = path.levels(torch.tensor(t_min or 1 / path.num_steps, dtype=torch.float64))
    last = path.levels(torch.ones((), dtype=torch.float64))
    if last.log_snr < -2 * LARGEST_LOG_RATIO:  # as far as the ODE goes
        last = path.levels(path.time(torch.tensor(-2 * LARGEST_LOG_RATIO, dtype=torch.float64)))

    def marginal(level: NoiseLevels) -> Normal:
        return Normal(level.alpha * mean, (level.alpha**2 * 0.25 + level.sigma**2).sqrt())

    start, end = marginal(first), marginal(last)
    x, x_end = start.mean + start.stddev * z, end.mean + end.stddev * z
    found = ProbabilityFlow(oracle(GaussianMixture([[mean]], [0.25]), path), t_min, 1e-7).solve(x, torch.ones_like(x))
    missed = Normal(0.0, float(path.prior_std(last))).log_prob(x_end) - end.log_prob(x_end)
    assert_close(found.log_density, (start.log_prob(x) + missed)[:, 0], rtol=0, atol=3e-4)  # at tolerance 1e-7
    if type(path) is VESchedule and path.sigma_max == 80 and mean:
        assert missed.abs().max() == pytest.approx(0.3 * 3 / 80, rel=0.05)


def test_the_tolerance_is_that_of_the_answer():
    path = FlowSchedule(1000)
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    first = path.levels(torch.tensor(1 / path.num_steps, dtype=torch.float64))
    exact = CENTRED.log_density(x, first.alpha, first.sigma)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        solution = ProbabilityFlow(oracle(CENTRED, path), tolerance=tolerance).solve(x, torch.ones_like(x))
        errors.append(float((solution.log_density - exact).abs().max()))
        calls.append(solution.calls)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert calls[0] < calls[1] < calls[2]


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


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1])
def test_refusals(t_min: float):
    with pytest.raises(ValueError, match=rf"t_min must .*\(got {t_min}\)"):
        FlowNLL(t_min=t_min)
    with pytest.raises(ValueError, match=rf"t_min must .*\(got {t_min}\)"):
        ProbabilityFlow(oracle(CENTRED, PATHS[0]), t_min=t_min)


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, math.inf, math.nan])
def test_a_tolerance_is_positive_and_finite(tolerance: float):
    with pytest.raises(ValueError, match=rf"^tolerance must .*\(got {tolerance}\): "):
        FlowNLL(tolerance=tolerance)
    with pytest.raises(ValueError, match=rf"^tolerance must .*\(got {tolerance}\): "):
        ProbabilityFlow(oracle(CENTRED, PATHS[0]), tolerance=tolerance)


@pytest.mark.parametrize(
    ("path", "t_min", "got"),
    [
        (CosineSchedule(1), None, "got 1, of a path of 1 steps"),  # one step, from its end to its end
        (FlowSchedule(1000), 0.9999999, "got 1, of a path of 1000 steps"),  # signal below what the ODE follows
    ],
)
def test_a_path_without_signal_to_lose_has_no_ode(path: NoiseSchedule, t_min: float | None, got: str):
    with pytest.raises(ValueError, match=rf"^t_min must be a time after which signal is lost \({got}\): "):
        ProbabilityFlow(oracle(CENTRED, path), t_min=t_min)


def test_a_density_is_one_of_data():
    flow, x = ProbabilityFlow(oracle(PLANE, PATHS[0])), torch.zeros(3, 2, dtype=torch.float64)
    for wrong, probe in ((x[:, :1], x[:, :1]), (x[0], x[0]), (x, x[:1]), (x, x[:, :1])):
        with pytest.raises(ValueError, match=r"^x and its probe must be batches of data of shape \[2\] \(got "):
            flow.solve(wrong, probe)
    for wrong, got in ((x.to(torch.uint8), "torch.uint8, 0 not finite"), (x + math.inf, "torch.float64, 6 not finite")):
        with pytest.raises(ValueError, match=rf"^x must be finite and of a floating-point type.* \(got {got}\): "):
            flow.solve(wrong, x)


def test_a_network_that_answers_no_number_is_told_of():
    class Broken(torch.nn.Module):
        data_shape, feature_channels = (2,), 2

        def forward(self, x_t: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x_t * math.nan, x_t

    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^the mean network must answer smoothly and with finite numbers"):
        ProbabilityFlow(Denoiser(Broken(), PATHS[0])).solve(x, torch.ones_like(x))
