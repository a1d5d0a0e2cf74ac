"""Every sampler with every trajectory, schedule and variance that ``conf`` offers: finite samples, or a sentence."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from optcov.denoiser import Denoiser
from optcov.model import MLP, SimpleHead
from optcov.sampler import Sampler, sample
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde

CONF = Path(__file__).parents[2] / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def config(group: str, name: str):
    return OmegaConf.load(CONF / group / f"{name}.yaml")


@cache
def fitted(trajectory: str, schedule: str) -> Trajectory:
    """A trajectory, fitted where it has something to fit to the network that all cases share."""
    settings = config("trajectory", trajectory)
    if "num_candidates" in settings:
        settings.num_candidates = 12
    made = instantiate(settings)
    if made.num_images:
        denoiser = tiny(instantiate(config("schedule", schedule), num_steps=100))
        made.fit(denoiser, BetaTilde(denoiser), [torch.rand(8, 3) * 2 - 1])
    return made


def draw(sampler: Sampler, strategy: VarianceStrategy, denoiser: Denoiser, trajectory: Trajectory) -> torch.Tensor:
    times = trajectory.times(denoiser.schedule, sampler.num_steps)
    return sample(denoiser, strategy, sampler, times, 2, progress=False)


def tiny(schedule) -> Denoiser:
    torch.manual_seed(0)
    network = MLP((3,), channels=8, num_blocks=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, schedule)


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("trajectory", options("trajectory"))
@pytest.mark.parametrize("sampler", options("sampler"))
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_every_sampler_on_every_trajectory_and_schedule(sampler: str, trajectory: str, schedule: str, num_steps: int):
    settings = OmegaConf.merge(config("sampler", sampler), {"num_steps": num_steps})
    if "order" in settings:
        settings.order = min(settings.order, num_steps)
    denoiser = tiny(instantiate(config("schedule", schedule), num_steps=100))
    made = instantiate(settings)
    x = draw(made, BetaTilde(denoiser), denoiser, fitted(trajectory, schedule))
    assert x.shape == (2, 3)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("var", options("var"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_takes_a_variance_or_says_why_not(sampler: str, var: str):
    """On times between the nodes of the schedule, where tables of fitted variances are interpolated."""
    denoiser = tiny(instantiate(config("schedule", "cosine"), num_steps=50))
    settings = config("var", var)
    arguments = {"head": SimpleHead} if "head" in settings else {}
    strategy = instantiate(
        OmegaConf.masked_copy(settings, [key for key in settings if key != "head"]), denoiser=denoiser, **arguments
    )
    if strategy.fitting == "calibrate":
        strategy.calibrate(denoiser, [torch.rand(8, 3) * 2 - 1])
    made = instantiate(config("sampler", sampler), num_steps=5)
    if (not made.uses_variance and var != "beta_tilde") or (sampler, var) == ("ddim", "iddpm"):
        with pytest.raises(ValueError, match=r"set (var=beta_tilde|sampler=ddpm)"):
            made.check(strategy)
        return
    x = draw(made, strategy, denoiser, instantiate(config("trajectory", "log_snr")))
    assert torch.isfinite(x).all()
