"""Noise on the mean of multistep solvers, and what iPNDM and DEIS combine.

On Gaussian data every chain is linear in its draws.  Draws from the columns of a Hadamard matrix have exactly the mean
and covariance of independent white noise, so that what `match` measures on them has no error but rounding.
"""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import hadamard
from scripted import PATHS, Scripted, white
from torch import Tensor
from torch.testing import assert_close

import optcov
from optcov.covariance import Covariance, FullCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import Guidance
from optcov.kernel import ReverseKernel
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.registry import make
from optcov.sampler import (
    DDIMSampler,
    DEISSampler,
    DPMSolverPPSampler,
    IPNDMSampler,
    Model,
    Sampler,
    UniPCSampler,
)
from optcov.sampler.share import Marginals, StepChains, balanced, shaped
from optcov.schedule import LinearSchedule, NoiseSchedule, VESchedule
from optcov.trajectory import EvenTrajectory, KarrasTrajectory, QuadraticTrajectory
from optcov.variance.base import Closed
from optcov.variance.fixed import Beta

FACTOR = torch.tensor([[0.5, 0.3, 0.0], [0.0, 0.4, 0.2], [0.0, 0.0, 0.05]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
DATA = GaussianMixture(MEAN[None], (FACTOR @ FACTOR.T)[None])
TRACE, MARGINALS = float(DATA.covariance().trace()), Marginals(FACTOR.T)


class Exact(Closed):
    """The oracle's C, all of it."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        return FullCovariance(denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1], (3,))


def perfect(count: int = 64) -> Scripted:
    """Draws whose sample moments over ``count`` chains are those of white noise."""
    columns = torch.from_numpy(hadamard(count)).double()[:, 1:]  # the first is constant
    return Scripted(columns[:, i : i + 3] for i in range(0, count - 4, 3))


MULTISTEP: dict[str, Callable[..., Sampler]] = {
    "2m": lambda k, **noise: DPMSolverPPSampler(k, 2, **noise),
    "3m": lambda k, **noise: DPMSolverPPSampler(k, 3, **noise),
    "unipc": lambda k, **noise: UniPCSampler(k, 2, **noise),
    "ipndm": lambda k, **noise: IPNDMSampler(k, 3, **noise),
    "deis": lambda k, **noise: DEISSampler(k, 3, **noise),
}
CHAINS = {
    "linear": (LinearSchedule(1000), QuadraticTrajectory()),
    "flow": (PATHS["flow"], EvenTrajectory()),
    "ve": (VESchedule(1000), KarrasTrajectory(3.0)),
}


def oracle(make_oracle, schedule: NoiseSchedule) -> Denoiser:
    return make_oracle(DATA, schedule, X0())


def moments(sampler: Sampler, denoiser: Denoiser, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance of x after each step of a chain but the last, from the exact marginal of x_T."""
    level, noise = denoiser.levels(times[-1]), perfect()
    root = torch.linalg.cholesky(level.alpha**2 * DATA.covariance() + level.sigma**2 * torch.eye(3))
    start = level.alpha * MEAN + noise.draw() @ root.T
    states = list(sampler.steps(denoiser, Exact(denoiser), times, noise, start=start))[:-1]
    return [(state.x.mean(0), torch.cov(state.x.T, correction=0)) for state in states]


@pytest.mark.parametrize("path", CHAINS)
@pytest.mark.parametrize("name", MULTISTEP)
def test_balanced_noise_gives_the_exact_trace_at_every_step(make_oracle, name: str, path: str):
    """Also from a prior that is not the marginal; wherever kappa and theta are not at their bounds."""
    schedule, trajectory = CHAINS[path]
    denoiser, times = oracle(make_oracle, schedule), trajectory.times(schedule, 6)
    sampler = MULTISTEP[name](6, noise="balanced")
    sampler.match(denoiser, Exact(denoiser), times, perfect(), MARGINALS)
    levels, found = denoiser.levels(times).flip(), sampler.measured()
    states = list(sampler.steps(denoiser, Exact(denoiser), times, perfect()))[:-1]
    inside = 0
    for i, state in enumerate(states):
        if 0 < found["noise_shares"][i] < 1 or 0 < found["extrapolations"][i] < 1:
            inside += 1
            trace = state.x.var(0, correction=0).sum() / (
                levels.alpha[i + 1] ** 2 * TRACE + 3 * levels.sigma[i + 1] ** 2
            )
            assert float(trace) == pytest.approx(1, abs=1e-9)
    assert inside >= 3


@pytest.mark.parametrize("name", MULTISTEP)
def test_the_mean_stays_exact(make_oracle, name: str):
    schedule, trajectory = CHAINS["linear"]
    denoiser, times = oracle(make_oracle, schedule), trajectory.times(schedule, 6)
    levels = denoiser.levels(times).flip()
    for i, (mean, _) in enumerate(moments(MULTISTEP[name](6, noise="full"), denoiser, times)):
        assert_close(mean, levels.alpha[i + 1] * MEAN, rtol=0, atol=1e-9)  # the start has mean 0, not alpha_T mu


def test_a_step_of_order_one_takes_the_whole_share_at_any_stride(make_oracle):
    """And is then DDIM's with the same C, bit for bit but for the order of sums."""
    denoiser = oracle(make_oracle, LinearSchedule(1000))
    for count, noise in ((2, "matched"), (4, "matched"), (4, "shaped"), (7, "matched")):
        times = EvenTrajectory().times(denoiser.schedule, count)
        sampler = DPMSolverPPSampler(count, 1, noise=noise)
        sampler.match(denoiser, Exact(denoiser), times, perfect(), MARGINALS)
        first, *others, last = sampler.measured()["noise_shares"].tolist()
        assert 0.5 < first <= 1  # the prior is not quite the marginal
        assert [*others, last] == pytest.approx([1.0] * (count - 2) + [0.0], abs=1e-9)
        full, ddim = DPMSolverPPSampler(count, 1, noise="full"), DDIMSampler(count, clip_x0=False)
        drawn = [each.sample(denoiser, Exact(denoiser), times, perfect()) for each in (full, ddim)]
        assert_close(*drawn, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [2, 3])
def test_the_share_of_order_p_falls_with_h_to_the_p_minus_one(make_oracle, monkeypatch, order: int):
    """On even steps, early in the chain, where the sign is positive: 0.3 is what the next term leaves of the slope."""
    white, path, shares = GaussianMixture([[0.0, 0.0, 0.0]], [0.25]), LinearSchedule(1000), []
    denoiser = make_oracle(white, path, X0())
    # a chain from the marginal: of the prior, the first steps would have to repair more than they leave
    monkeypatch.setattr(path, "prior_std", lambda level: (0.25 * level.alpha**2 + level.sigma**2).sqrt())
    for count in (25, 50):  # 256 draws are needed to keep the chain exact
        times = torch.linspace(0.02, 1, count, dtype=torch.float64)
        sampler = DPMSolverPPSampler(count, order, noise="matched")
        sampler.match(denoiser, Exact(denoiser), times, perfect(256), Marginals(0.5 * torch.eye(3)))
        shares.append(float(sampler.measured()["noise_shares"][count // 5]))
    assert math.log2(shares[0] / shares[1]) == pytest.approx(order - 1, abs=0.3)


def test_only_steps_with_noise_pay_for_it(make_oracle):
    """LGS takes two products by forward differences here, each one call."""
    denoiser = oracle(make_oracle, LinearSchedule(1000))
    times = QuadraticTrajectory().times(denoiser.schedule, 6)
    strategy = make("var", "lgs", denoiser=denoiser, steps=2, difference=0.01)
    sampler = DPMSolverPPSampler(6, 2, noise="matched", cut=None)
    sampler.match(denoiser, strategy, times, perfect(), MARGINALS)
    noisy = int((sampler.measured()["noise_shares"] > 0).sum())
    assert 0 < noisy < 5
    for each, steps in ((sampler, noisy), (DPMSolverPPSampler(6, 2, noise="full", cut=None), 5)):
        denoiser.cost.reset()
        each.sample(denoiser, strategy, times, perfect())
        assert (denoiser.cost.nfe, denoiser.cost.ne) == (64 * (6 + 2 * steps), 64 * (6 + 2 * steps))


def test_the_last_noise_is_cut(make_oracle):
    """To one grey level, in x_s; without a cut it is what the kernel says."""
    denoiser, times = oracle(make_oracle, LinearSchedule(1000)), torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    levels = denoiser.levels(times).flip()
    kernel = ReverseKernel.from_levels(levels[2], levels[1], 0.0)
    for cut, variance in ((1.0, (2 / 255) ** 2 * math.pi / 2), (None, None)):
        noisy = list(DPMSolverPPSampler(3, 1, noise="full", cut=cut).steps(denoiser, Exact(denoiser), times, perfect()))
        silent = DPMSolverPPSampler(1, 1).mean_step
        state, plan = noisy[0], DPMSolverPPSampler(3, 1).plan(denoiser.schedule, levels)
        model = Model(denoiser, Exact(denoiser), Guidance(), None, perfect())
        added = noisy[1].x - silent(model, plan, state).x
        exact = kernel.c**2 * DATA.posterior(state.x, levels.alpha[1], levels.sigma[1])[1][0].diagonal()
        expected = exact if variance is None else exact.clamp(max=variance)
        assert_close(added.var(0, correction=0), expected, rtol=1e-6, atol=0)


def test_a_mean_that_no_extrapolation_shortens_is_left_alone():
    x = white(1, 64, 3)[0]
    level = LinearSchedule(1000).levels(torch.tensor(1.0, dtype=torch.float64))
    found = balanced(StepChains(x, 2 * x, -x, torch.zeros_like(x), 3.0, Marginals(torch.eye(3)), level))
    assert (found.share, found.theta) == (0.0, 1.0)
    assert found.trace == pytest.approx(12)


def test_a_shaped_share_brings_the_covariance_nearest_to_the_marginal():
    """Of noise that has a part in what is missing, and of noise that has none although the trace lacks as much."""
    level = PATHS["flow"].levels(torch.tensor(0.4, dtype=torch.float64))
    exact = level.alpha**2 * DATA.covariance() + level.sigma**2 * torch.eye(3)
    noise, inverse = perfect(256), torch.linalg.inv(exact)
    x, draws = noise.draw(), noise.draw()
    least, middle, most = torch.linalg.eigh(DATA.covariance())[1].T
    for missing, added, expected in ((most, most, 0.5), (most, least, 0.0), (middle, most + middle, None)):
        there = exact - 0.02 * torch.outer(missing, missing)
        mean = x @ torch.linalg.cholesky(there).T
        drawn = 0.2 * draws[:, :1] * added
        given = torch.outer(added, added) * 0.04
        by_matrices = ((inverse @ (exact - there) @ inverse) * given).sum() / (
            (inverse @ given @ inverse) * given
        ).sum()
        chains = StepChains(mean, mean, torch.zeros_like(x), drawn, float(there.trace()), MARGINALS, level)
        share = shaped(chains).share
        assert share == pytest.approx(float(by_matrices), abs=0.01)
        assert expected is None or share == pytest.approx(expected, abs=0.01)
    assert balanced(chains).share == pytest.approx(0.25)  # by the trace, wherever it is missing


def test_samples_are_fitted_to_images_and_depend_on_seed_and_index_alone(make_oracle):
    denoiser = oracle(make_oracle, LinearSchedule(1000))
    images = DATA.sample(300, torch.Generator().manual_seed(0)).clamp(-1, 1).float()
    how = {"num_steps": 5, "sampler": "dpm_solver_pp", "trajectory": "quadratic", "progress": False}
    drawn = [
        optcov.sample(denoiser, "beta", count=8, batch_size=size, noise="balanced", images=images, **how)
        for size in (8, 3)
    ]
    assert_close(*drawn, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^sampler must be fitted to these times .* \(got no fit\): .* images "):
        optcov.sample(denoiser, "beta", noise="balanced", **how)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"noise": "some"}, r"sampler\.noise must be one of none, full, matched, balanced, shaped \(got 'some'\)"),
        ({"noise": "full", "sde": True}, r"sampler\.noise must be none for sampler\.sde=true"),
        ({"noise": "full", "cut": -1.0}, r"sampler\.cut must not be negative \(got -1\.0\)"),
    ],
)
def test_refuses_settings_without_meaning(settings: dict, sentence: str):
    with pytest.raises(ValueError, match=f"^{sentence}.*: "):
        DPMSolverPPSampler(5, 2, **settings)


def test_refuses_other_times_guidance_and_models_of_ddpm_steps(make_oracle):
    denoiser = oracle(make_oracle, LinearSchedule(1000))
    times, sampler = QuadraticTrajectory().times(denoiser.schedule, 5), DPMSolverPPSampler(5, 2, noise="matched")
    sampler.match(denoiser, Exact(denoiser), times, perfect(), MARGINALS)
    with pytest.raises(ValueError, match=r"^sampler must be fitted to these times .* \(got other times\): "):
        sampler.sample(denoiser, Exact(denoiser), times / 2, perfect())
    guidance = Guidance()
    guidance.steers = True
    with pytest.raises(ValueError, match=r"^guidance must be none .* \(got Guidance\): "):
        sampler.sample(denoiser, Exact(denoiser), times, perfect(), guidance=guidance)
    with pytest.raises(ValueError, match=r"^sampler\.eta must be 1 for LearnedRange"):
        sampler.check(make("var", "iddpm", denoiser=denoiser, head=make("head", "input")), denoiser.schedule)
    with pytest.raises(ValueError, match=r"set var=beta_tilde, or sampler\.noise=matched"):
        DPMSolverPPSampler(5, 2).check(Beta(denoiser), denoiser.schedule)


class Straight(NoiseSchedule):
    """``alpha = 1, sigma = t``: rho is the time."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2).exp()


PUBLISHED = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


@pytest.mark.parametrize("kind", [IPNDMSampler, DEISSampler])
def test_equal_steps_have_the_coefficients_of_adams_and_bashforth(kind: type):
    """Which are those of PNDM, Eq. 12, and of DEIS where rho is the time."""
    schedule, times = Straight(1000), torch.arange(1, 8, dtype=torch.float64) / 7
    plan = kind(7, 4).plan(schedule, schedule.levels(times).flip())
    for i in range(6):
        weights, used = plan.weights[i], min(4, i + 1)
        start = torch.zeros(4, dtype=torch.float64)
        start[0] = 1 - i / 7  # x_s = m + sigma_t e_0 - (1/7) sum b_j e_j
        b = (start - weights) * 7
        assert_close(b[:used], torch.tensor(PUBLISHED[used - 1], dtype=torch.float64), rtol=0, atol=1e-10)
        assert not b[used:].any()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "path"), [(DEISSampler, "flow"), (DEISSampler, "vp_sde"), (IPNDMSampler, "straight")])
def test_a_step_from_the_exact_past_errs_by_one_order_more(make_oracle, kind: type, path: str, order: int):
    """The local error, for the lower orders of the first steps hide the order of a whole chain.

    The ODE of Gaussian data multiplies x - alpha mu by the ratio of standard deviations.  0.3 is what the next term
    leaves of the slope.
    """
    schedule = Straight(1000) if path == "straight" else PATHS[path]
    denoiser, errors = oracle(make_oracle, schedule), []
    variances, axes = torch.linalg.eigh(DATA.covariance())
    for h in (0.02, 0.01):
        levels = denoiser.levels(0.5 + h * torch.arange(5, dtype=torch.float64).flip(0))
        std = (levels.alpha[:, None] ** 2 * variances + levels.sigma[:, None] ** 2).sqrt()
        x = levels.alpha[:, None, None] * MEAN + std[:, :, None] * axes.T  # at each time, a deviation along each axis
        predictions = [denoiser(each, level) for each, level in zip(x, levels, strict=True)]
        plan = kind(5, order).plan(schedule, levels)
        end = plan.keep[3] * predictions[3].x0
        end = end + sum(plan.weights[3, j] * predictions[3 - j].eps for j in range(order))
        errors.append(float((end - x[4]).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.3)
