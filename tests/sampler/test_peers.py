"""Parity with the schedulers of diffusers: the same x at every network call, from the same noise, in float64.

Their tables are float32; each is given ours.  Time n of ours is index n - 1 of theirs.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from scripted import Scripted, white
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.parameterization import Parameterization, Velocity
from optcov.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPPSampler,
    EulerSampler,
    HeunSampler,
    Sampler,
    UniPCSampler,
)
from optcov.schedule import CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule
from optcov.trajectory import DDIMStrideTrajectory, EvenTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde

diffusers = pytest.importorskip("diffusers")

COUNT, DIM = 6, 2


class Float64Torch:
    """``torch``, but what asks for single precision gets double."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some of their coefficients are made in the default dtype, and some samplers cast x to float32."""
    for name in ("dpmsolver_multistep", "euler_discrete", "flow_match_euler_discrete"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", Float64Torch())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Recorder(nn.Module):
    """The exact network, which remembers what it was asked."""

    def __init__(
        self, mixture: GaussianMixture, schedule: NoiseSchedule, parameterization: Parameterization | None = None
    ) -> None:
        super().__init__()
        self.network = OracleNetwork((DIM,), mixture, schedule, parameterization=parameterization, num_features=1)
        self.data_shape, self.feature_channels = (DIM,), self.network.feature_channels
        self.asked: list[Tensor] = []

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(x_t)
        return self.network(x_t, time)


@pytest.fixture(params=[LinearSchedule(1000), CosineSchedule(1000)], ids=["linear", "cosine"])
def denoiser(request: pytest.FixtureRequest, mixture: GaussianMixture) -> Denoiser:
    return Denoiser(Recorder(mixture, request.param), request.param)


def visited(
    sampler: Sampler, denoiser: Denoiser, times: Tensor, draws: Tensor, strategy: type[VarianceStrategy] = BetaTilde
) -> list[Tensor]:
    """What the network is asked, and the answer."""
    denoiser.network.asked.clear()
    answer = sampler.sample(denoiser, strategy(denoiser), times, Scripted(draws))
    return [*denoiser.network.asked, answer]


def given_our_tables(scheduler, schedule: NoiseSchedule):
    alpha_sq = schedule.alpha(schedule.grid()) ** 2
    scheduler.alphas_cumprod = alpha_sq
    scheduler.alphas = alpha_sq / torch.cat([alpha_sq.new_ones(1), alpha_sq[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0)
    return scheduler


def given_our_sigmas(scheduler, schedule: NoiseSchedule, times: Tensor, repeat: int = 1):
    """``sigma / alpha`` at our times and 0 at the end; inner ones ``repeat`` times, as Heun's scheduler has them."""
    scheduler.set_timesteps(len(times))
    times = times.flip(0)
    ratio, index = schedule.sigma(times) / schedule.alpha(times), (times * schedule.num_steps).round() - 1
    scheduler.sigmas = torch.cat([ratio[:1], ratio[1:].repeat_interleave(repeat), ratio.new_zeros(1)])
    scheduler.timesteps = torch.cat([index[:1], index[1:].repeat_interleave(repeat)])
    return scheduler


def theirs(denoiser: Denoiser, indices: Tensor, x: Tensor, step: Callable[[Tensor, int, Tensor], Tensor]) -> list:
    visited = [x]
    for index in indices.tolist():
        eps = denoiser(x, denoiser.levels(torch.tensor((index + 1) / denoiser.schedule.num_steps))).eps
        x = step(eps, index, x)
        visited.append(x)
    return visited


def assert_same(ours: list[Tensor], peer: list[Tensor]) -> None:
    """To 1e-9: 1 - alpha^2 formed by subtraction leaves 1.3e-10 at worst."""
    assert len(ours) == len(peer)
    for mine, their in zip(ours, peer, strict=True):
        assert_close(mine, their, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip_x0", [False, True])
@pytest.mark.parametrize(("strategy", "variance_type"), [(BetaTilde, "fixed_small"), (Beta, "fixed_large")])
@pytest.mark.parametrize("num_steps", [2, 10])
def test_ddpm(denoiser: Denoiser, strategy, variance_type: str, clip_x0: bool, num_steps: int):
    peer = diffusers.DDPMScheduler(1000, variance_type=variance_type, clip_sample=clip_x0)
    given_our_tables(peer, denoiser.schedule)
    times = EvenTrajectory().times(denoiser.schedule, num_steps)
    peer.set_timesteps(timesteps=((times * 1000).round().int() - 1).flip(0).tolist())
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randn(COUNT, DIM, generator=generator) for _ in range(num_steps + 1)])
    generator.manual_seed(0)
    torch.randn(COUNT, DIM, generator=generator)  # what is left gives the peer what the script gives us
    peer_x = theirs(
        denoiser, peer.timesteps, draws[0], lambda eps, i, x: peer.step(eps, i, x, generator=generator).prev_sample
    )
    sampler = DDPMSampler(num_steps, clip_x0=clip_x0, cut=None)
    assert_same(visited(sampler, denoiser, times, draws, strategy), peer_x)


@pytest.mark.parametrize("clip_x0", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [2, 10])
def test_ddim(denoiser: Denoiser, eta: float, clip_x0: bool, num_steps: int):
    peer = given_our_tables(diffusers.DDIMScheduler(1000, clip_sample=clip_x0), denoiser.schedule)
    peer.set_timesteps(num_steps)
    times = DDIMStrideTrajectory().times(denoiser.schedule, num_steps)
    draws = white(num_steps + 1, COUNT, DIM)
    noise = iter(draws[1:])

    def step(eps: Tensor, i: int, x: Tensor) -> Tensor:
        return peer.step(eps, i, x, eta=eta, variance_noise=next(noise)).prev_sample

    peer_x = theirs(denoiser, peer.timesteps, draws[0], step)
    assert_same(visited(DDIMSampler(num_steps, eta, clip_x0, None), denoiser, times, draws), peer_x)


@pytest.mark.parametrize("num_steps", [2, 3, 10, 20])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_pp(denoiser: Denoiser, order: int, sde: bool, num_steps: int):
    kind = "sde-dpmsolver++" if sde else "dpmsolver++"
    peer = diffusers.DPMSolverMultistepScheduler(1000, solver_order=order, algorithm_type=kind)
    times = EvenTrajectory().times(denoiser.schedule, num_steps)
    given_our_sigmas(peer, denoiser.schedule, times)
    draws = white(num_steps + 1, COUNT, DIM)
    noise = iter(draws[1:])

    def step(eps: Tensor, i: int, x: Tensor) -> Tensor:
        return peer.step(eps, i, x, variance_noise=next(noise) if sde else None).prev_sample

    peer_x = theirs(denoiser, peer.timesteps, draws[0], step)
    assert_same(visited(DPMSolverPPSampler(num_steps, order, sde), denoiser, times, draws), peer_x)


@pytest.mark.parametrize("num_steps", [3, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(denoiser: Denoiser, order: int, num_steps: int):
    """They are asked before the correction, as we are: what is compared are the predictor's x."""
    peer = diffusers.UniPCMultistepScheduler(1000, solver_order=order)
    times = EvenTrajectory().times(denoiser.schedule, num_steps)
    given_our_sigmas(peer, denoiser.schedule, times)
    draws = white(1, COUNT, DIM)
    peer_x = theirs(denoiser, peer.timesteps, draws[0], lambda eps, i, x: peer.step(eps, i, x).prev_sample)
    assert_same(visited(UniPCSampler(num_steps, order), denoiser, times, draws), peer_x)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
@pytest.mark.parametrize("sampler", [EulerSampler, HeunSampler])
def test_euler_and_heun(denoiser: Denoiser, sampler: type[Sampler], num_steps: int):
    """Their x is x / alpha."""
    heun = sampler is HeunSampler
    peer = (diffusers.HeunDiscreteScheduler if heun else diffusers.EulerDiscreteScheduler)(1000, 1e-4, 0.02)
    schedule = denoiser.schedule
    times = EvenTrajectory().times(schedule, num_steps)
    given_our_sigmas(peer, schedule, times, repeat=2 if heun else 1)
    draws = white(1, COUNT, DIM)
    n = peer.timesteps + 1
    alpha = torch.cat([schedule.alpha(n / schedule.num_steps), torch.ones(1)])
    x = draws[0] / alpha[0]
    peer_x = [draws[0]]
    for i, index in enumerate(peer.timesteps):
        eps = denoiser(peer_x[-1], denoiser.levels((index + 1) / schedule.num_steps)).eps
        x = peer.step(eps, index, x).prev_sample
        peer_x.append(x * alpha[i + 1])
    assert_same(visited(sampler(num_steps), denoiser, times, draws), peer_x)


FLOW_PEERS = {
    "euler": (EulerSampler, "FlowMatchEulerDiscreteScheduler", {}),
    **{
        f"{kind}_{order}": (
            partial(ours, order=order),
            f"{peer}MultistepScheduler",
            {"solver_order": order, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
        )
        for kind, ours, peer in (("dpm", DPMSolverPPSampler, "DPMSolver"), ("unipc", UniPCSampler, "UniPC"))
        for order in (1, 2)
    },
}


@pytest.mark.parametrize("t_max", [0.98, 1.0])
@pytest.mark.parametrize("num_steps", [2, 10])
@pytest.mark.parametrize("name", FLOW_PEERS)
def test_flow(mixture: GaussianMixture, name: str, num_steps: int, t_max: float):
    """Their sigma is our t, and their networks say ``eps - x_0``.  Their logarithms end below t = 1."""
    make, peer_name, options = FLOW_PEERS[name]
    if t_max == 1 and options:
        t_max = 1 - 1e-9  # where their sigma still has a logarithm: as near to ours as 1e-9
    times = torch.linspace(0.02, t_max, num_steps)
    schedule = FlowSchedule(1000)
    denoiser = Denoiser(Recorder(mixture, schedule, Velocity()), schedule, Velocity())
    peer = getattr(diffusers, peer_name)(1000, **options)
    peer.set_timesteps(num_steps)
    peer.sigmas = torch.cat([times.flip(0), torch.zeros(1)])
    peer.timesteps = times.flip(0) * 1000
    draws = white(1, COUNT, DIM)
    peer_x = [t_max * draws[0]]
    for t in peer.timesteps:
        output = denoiser(peer_x[-1], denoiser.levels(t / 1000)).output
        peer_x.append(peer.step(output, t, peer_x[-1]).prev_sample)
    assert_same(visited(make(num_steps), denoiser, times, draws), peer_x)
