"""DDPM and DDIM steps: exact moments of whole chains on Gaussian data, clipping, bounds, ends."""

import math
from itertools import pairwise

import pytest
import torch
from scripted import PATHS, Exact, Scripted, chain_moments, marginal, white
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.model import SimpleHead
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.sampler import DDIMSampler, DDPMSampler
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde
from optcov.variance.iddpm import LearnedRange

MU, V = 0.3, 0.25
GAUSSIAN = GaussianMixture([[MU]], [V])


class Fixed(Closed):
    """C of eigenvalues -1, 0.002, 0.5, 7, wherever it is asked."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> DiagonalCovariance:
        x_t = prediction.x_t
        return DiagonalCovariance(torch.tensor([-1, 0.002, 0.5, 7], dtype=x_t.dtype).expand_as(x_t))


class Recorder(nn.Module):
    """Predicts x_0 = 0.2 x_t of 4 pixels, and remembers what it was asked."""

    data_shape, feature_channels = (4,), 4

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(x_t)
        return 0.2 * x_t, x_t


def expected_moments(denoiser: Denoiser, times: Tensor, eta: float, start: tuple[float, float]) -> tuple[float, float]:
    """Moments of x_0's estimate, propagated through the conditionals of Gaussian data."""
    mean, variance = start[0], start[1] ** 2
    chain = [(float(level.alpha), float(level.sigma) ** 2) for level in denoiser.levels(times)]
    for (a_s, v_s), (a_t, v_t) in reversed(list(pairwise(chain))):
        lambda_sq = eta**2 * (v_t - (a_t / a_s) ** 2 * v_s) * v_s / v_t
        b = math.sqrt(max(v_s - lambda_sq, 0) / v_t)
        a = a_s - b * a_t
        total = a_t**2 * V + v_t
        gain = a * a_t * V / total + b
        mean = a_s * MU + gain * (mean - a_t * MU)
        variance = gain**2 * variance + lambda_sq + a**2 * V * v_t / total
    a_1, v_1 = chain[0]
    gain = a_1 * V / (a_1**2 * V + v_1)
    return MU + gain * (mean - a_1 * MU), gain**2 * variance


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "path", [LinearSchedule(1000), CosineSchedule(50), VPSDESchedule(30), FlowSchedule(40), VESchedule(30)]
)
def test_moments_of_a_chain_with_the_exact_covariance(make_oracle, path: NoiseSchedule, num_steps: int, eta: float):
    """From the prior, whose mean and variance are not quite those of x_T."""
    denoiser = make_oracle(GAUSSIAN, path, X0())
    times = EvenTrajectory().times(path, num_steps)
    sampler = DDIMSampler(num_steps, eta, clip_x0=False, cut=None)
    found = chain_moments(sampler, Exact(denoiser), denoiser, times)
    prior = (0.0, float(path.prior_std(path.levels(times[-1]))))
    # sigma_t^2 - alpha_{t|s}^2 sigma_s^2 in the reference
    assert_close(found, expected_moments(denoiser, times, eta, prior), rtol=1e-6, atol=1e-9)


KERNEL_SAMPLERS = {
    "ddpm": DDPMSampler(2, clip_x0=False, cut=None),
    **{f"ddim_{eta}": DDIMSampler(2, eta, clip_x0=False, cut=None) for eta in (0.0, 0.5, 1.0)},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", KERNEL_SAMPLERS)
def test_two_steps_give_the_data_back_with_the_exact_covariance(make_oracle, name: str, path: str):
    """From the exact marginal of x_T.  What x_0 has beyond its estimate from x_1 is C itself."""
    denoiser = make_oracle(GAUSSIAN, PATHS[path], X0())
    times = EvenTrajectory().times(denoiser.schedule, 2)
    first, start = denoiser.levels(times[0]), marginal(denoiser, times[-1])
    left = float(GAUSSIAN.posterior(torch.zeros(1, 1), first.alpha, first.sigma)[1])
    mean, variance = chain_moments(KERNEL_SAMPLERS[name], Exact(denoiser), denoiser, times, start)
    assert mean == pytest.approx(MU, rel=1e-10)
    assert variance + left == pytest.approx(V, rel=1e-10)
    _, without = chain_moments(KERNEL_SAMPLERS[name], BetaTilde(denoiser), denoiser, times, start)
    assert abs(without + left - V) > 0.01


def test_two_steps_with_the_variances_of_ddpm_do_not(make_oracle):
    denoiser = make_oracle(GAUSSIAN, LinearSchedule(1000))
    times = EvenTrajectory().times(denoiser.schedule, 2)
    variance = {s: chain_moments(KERNEL_SAMPLERS["ddpm"], s(denoiser), denoiser, times)[1] for s in (BetaTilde, Beta)}
    assert variance[BetaTilde] < 0.001
    assert variance[Beta] > 0.9


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [2, 5])
@pytest.mark.parametrize("path", [CosineSchedule(20), FlowSchedule(20), VESchedule(20)])
def test_clipping(path: NoiseSchedule, num_steps: int, eta: float):
    """DDPM: mean of q(x_s|x_t, x_0) at the clipped m.  DDIM: the clipped m with the unclipped e."""
    denoiser = Denoiser(Recorder(), path, X0())
    times = EvenTrajectory().times(path, num_steps)
    z = 4 * white(num_steps + 1, 50, 4)
    ddpm = DDPMSampler(num_steps, cut=None).sample(denoiser, BetaTilde(denoiser), times, Scripted(z))
    ddim = DDIMSampler(num_steps, eta, cut=None).sample(denoiser, BetaTilde(denoiser), times, Scripted(z))
    x_ddpm = x_ddim = z[0] * path.prior_std(path.levels(times[-1]))
    for i in range(num_steps - 1, 0, -1):
        (a_s, a_t), (v_s, v_t) = path.alpha(times[i - 1 : i + 1]), path.sigma(times[i - 1 : i + 1]) ** 2
        beta = v_t - (a_t / a_s) ** 2 * v_s
        beta_tilde = beta * v_s / v_t
        draw = beta_tilde.sqrt() * z[num_steps - i]
        clipped = (0.2 * x_ddpm).clamp(-1, 1)
        assert (clipped.abs() == 1).any() or i < num_steps - 1
        x_ddpm = a_s * beta / v_t * clipped + a_t / a_s * v_s / v_t * x_ddpm + draw
        e = (x_ddim - a_t * 0.2 * x_ddim) / v_t.sqrt()
        x_ddim = a_s * (0.2 * x_ddim).clamp(-1, 1) + (v_s - eta**2 * beta_tilde).sqrt() * e + eta * draw
    assert_close(ddpm, (0.2 * x_ddpm).clamp(-1, 1), rtol=1e-9, atol=1e-10)
    assert_close(ddim, (0.2 * x_ddim).clamp(-1, 1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("strategy", [BetaTilde, Beta, Fixed])
def test_ddim_at_eta_one_is_ddpm_until_x0_is_clipped(schedule: NoiseSchedule, strategy: type[VarianceStrategy]):
    denoiser = Denoiser(Recorder(), schedule, X0())
    times = EvenTrajectory().times(schedule, 4)

    def both(clip_x0: bool, scale: float) -> list[Tensor]:
        z = scale * white(5, 20, 4)
        samplers = DDPMSampler(4, clip_x0, cut=2.0), DDIMSampler(4, 1.0, clip_x0, cut=2.0)
        return [sampler.sample(denoiser, strategy(denoiser), times, Scripted(z)) for sampler in samplers]

    differences = []
    for scale in (3.0, 10.0):  # at one of them x_0 is clipped in part, not nowhere or everywhere
        ddpm, ddim = both(clip_x0=False, scale=scale)
        assert_close(ddpm, ddim, rtol=1e-9, atol=1e-10)
        ddpm, ddim = both(clip_x0=True, scale=scale)
        differences.append((ddpm - ddim).abs().max())
    assert max(differences) > 1e-6  # against 1e-9 above; a clipped x_0 shrinks what reaches the end


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("strategy", [BetaTilde, Exact])
def test_few_steps_are_finite_on_every_schedule(make_oracle, schedule: NoiseSchedule, strategy, num_steps: int):
    denoiser = make_oracle(GAUSSIAN, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    for sampler in (DDPMSampler(num_steps), DDIMSampler(num_steps), DDIMSampler(num_steps, 0.5)):
        x = sampler.sample(denoiser, strategy(denoiser), times, Scripted(white(num_steps + 1, 100, 1)))
        assert torch.isfinite(x).all()
        assert x.abs().max() <= 1  # the last step returns the clipped m


@pytest.mark.parametrize("cut", [None, 0.0, 1.0, 2.0, 40.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_bounds_of_each_step(eta: float, cut: float | None):
    """C is clamped to [0, 1] at every step, Sigma at the last stochastic one alone; the step to 0 is the mean."""
    schedule = LinearSchedule(1000)
    network = Recorder()
    denoiser = Denoiser(network, schedule, X0())
    times = EvenTrajectory().times(schedule, 4)
    z = white(5, 3, 4)
    sampler = DDIMSampler(4, eta, clip_x0=False, cut=cut)
    x = sampler.sample(denoiser, Fixed(denoiser), times, Scripted(z))
    visited = [*network.asked, x]
    assert len(visited) == 5
    assert_close(visited[0], z[0], rtol=0, atol=0)
    assert_close(visited[4], 0.2 * visited[3], rtol=1e-9, atol=1e-12)
    for i in (3, 2, 1):
        (a_s, a_t), (v_s, v_t) = schedule.alpha(times[i - 1 : i + 1]), schedule.sigma(times[i - 1 : i + 1]) ** 2
        lambda_sq = eta**2 * (1 - (a_t / a_s) ** 2) * v_s / v_t
        b = ((v_s - lambda_sq) / v_t).sqrt()
        a = a_s - b * a_t
        expected = lambda_sq + a**2 * torch.tensor([0, 0.002, 0.5, 1], dtype=torch.float64)
        if i == 1 and cut is not None:
            bound = (cut * 2 / 255) ** 2 * math.pi / 2
            assert (expected > bound).any() or cut == 40
            expected = expected.clamp(max=bound)
        x_t, x_s = visited[3 - i], visited[4 - i]
        variance = ((x_s - a * 0.2 * x_t - b * x_t) / z[4 - i]) ** 2
        assert_close(variance, expected.expand(3, 4), rtol=1e-6, atol=1e-12)  # a difference, squared


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_cut_leaves_a_chain_without_noise_alone(make_oracle, num_steps: int):
    schedule = CosineSchedule(20)
    denoiser = make_oracle(GAUSSIAN, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    z = white(num_steps + 1, 5, 1)
    cut, uncut = (
        DDIMSampler(num_steps, cut=c).sample(denoiser, BetaTilde(denoiser), times, Scripted(z)) for c in (1.0, None)
    )
    assert torch.equal(cut, uncut)


SHARED = [("num_steps", 0), ("num_steps", -3), ("cut", -1.0)]


@pytest.mark.parametrize(
    ("sampler", "argument", "value"),
    [(sampler, *pair) for sampler in (DDPMSampler, DDIMSampler) for pair in SHARED]
    + [(DDIMSampler, "eta", -0.1), (DDIMSampler, "eta", 1.5)],
)
def test_refusals_name_the_argument_and_the_value(sampler: type, argument: str, value: float):
    with pytest.raises(ValueError, match=rf"(?s){argument}.*{value}"):
        sampler(**{"num_steps": 10, argument: value})


def test_learned_range_is_refused_by_ddim(make_oracle):
    denoiser = make_oracle(GAUSSIAN, CosineSchedule(20))
    strategy = LearnedRange(denoiser, SimpleHead)
    DDPMSampler(5).check(strategy, denoiser.schedule)
    with pytest.raises(ValueError, match=r"eta must be 1 .*\(got 0.0\)"):
        DDIMSampler(5, eta=0.0).check(strategy, denoiser.schedule)


@pytest.mark.parametrize("strategy", [BetaTilde, Beta])
def test_the_prescribed_variances_of_ddpm_are_not_cut(make_oracle, strategy: type[VarianceStrategy]):
    denoiser = make_oracle(GAUSSIAN, LinearSchedule(1000))
    times, z = EvenTrajectory().times(denoiser.schedule, 5), white(6, 20, 1)
    cut, uncut = (DDPMSampler(5, cut=c).sample(denoiser, strategy(denoiser), times, Scripted(z)) for c in (0.0, None))
    assert torch.equal(cut, uncut)
