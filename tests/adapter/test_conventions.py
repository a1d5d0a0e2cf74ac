"""Whatever its conventions, a network is the denoiser it is: the exact one of a mixture, wrapped in each of them."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import optcov
from optcov.adapter.diffusers_schedule import schedule_of
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.oracle import GaussianMixture
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.schedule import BetaSchedule, CosineSchedule, FlowSchedule, LinearSchedule, NoiseSchedule, VESchedule
from optcov.schedule.levels import NoiseLevels, per_sample

SHAPE = (2, 2, 1)  # two channels
LINEAR, COSINE, FLOW, VE = LinearSchedule(1000), CosineSchedule(1000), FlowSchedule(1000), VESchedule(1000, 0.01, 50.0)
SHORT = LinearSchedule(200)


def mixture(data_range: DataRange, scale: float = 1.0) -> GaussianMixture:
    """Two components in a range, of the same shape in each; of unbounded data on any scale."""
    means = torch.tensor([[-0.5, 0.2, 0.4, -0.3], [0.3, -0.4, 0.1, 0.5]], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.5, 0, 0], [0, 0.7, 0.2, 0], [0, 0, 1, -0.6], [0, 0, 0, 0.4]], dtype=torch.float64) / 9
    images = data_range.from_unit(means.reshape(2, *SHAPE)).flatten(1)
    width = (data_range.from_unit(torch.ones(1, *SHAPE).double()) - data_range.from_unit(-torch.ones(1, *SHAPE))) / 2
    spread = torch.diag(width.double().flatten()) @ root
    return GaussianMixture(images * scale, (scale**2 * spread @ spread.T).expand(2, 4, 4), [0.4, 0.6])


TIME_OF: dict[str, Callable[[Tensor, NoiseSchedule], Tensor]] = {  # what a network does with what it is fed
    "n": lambda fed, path: fed / path.num_steps,
    "n-1": lambda fed, path: (fed + 1) / path.num_steps,
    "1000t": lambda fed, path: fed / 1000,
    "999t": lambda fed, path: fed / 999,
    "t": lambda fed, path: fed,
    "log_snr": lambda fed, path: path.time(fed),
    "edm": lambda fed, path: path.time(-8 * fed),
}


def network(
    data: GaussianMixture,
    path: NoiseSchedule,
    meaning: Parameterization,
    time_of: Callable[[Tensor, NoiseSchedule], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact network of a mixture, as someone with these conventions would have it."""

    def call(x: Tensor, fed: Tensor) -> Tensor:
        assert fed.shape == (len(x),)
        level = path.levels(time_of(fed.double(), path))
        c_in = meaning.c_in(level)
        x_t = x.double() if c_in is None else x.double() / per_sample(c_in, x.double())
        mean = data.posterior(x_t.flatten(1), level.alpha, level.sigma)[0].reshape(x.shape)
        eps = (x_t - per_sample(level.alpha, x_t) * mean) / per_sample(level.sigma, x_t)
        return meaning.target(mean, eps, level).to(x.dtype)

    return call


def assert_is_exact(denoiser: Denoiser, data: GaussianMixture, path: NoiseSchedule) -> None:
    """Mean and noise at times of the grid, small to large."""
    t = (torch.tensor([1, 3, 40, 300, 800, 1000]) * path.num_steps // 1000).clamp(min=1) / path.num_steps
    level = path.levels(t)
    x_0 = data.sample(6, torch.Generator().manual_seed(0)).reshape(6, *SHAPE)
    eps = torch.randn(6, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = per_sample(level.alpha, x_0) * x_0 + per_sample(level.sigma, x_0) * eps
    found = denoiser(x_t, denoiser.levels(t))
    mean = data.posterior(x_t.flatten(1), level.alpha, level.sigma)[0].reshape(6, *SHAPE)
    assert_close(found.x0, mean, rtol=1e-6, atol=1e-6)
    assert_close(
        found.eps, (x_t - per_sample(level.alpha, x_t) * mean) / per_sample(level.sigma, x_t), rtol=1e-6, atol=1e-6
    )


UNIT = (-1.0, 1.0)
CASES: dict[str, tuple[NoiseSchedule, Any, Parameterization, Any, str]] = {
    # path, schedule=, meaning, prediction=, time=
    "DDPM": (LINEAR, "linear", Eps(), "eps", "n"),
    "Improved DDPM": (COSINE, "cosine", Eps(), Eps, "n-1"),
    "x0": (LINEAR, LINEAR, X0(), "x0", "1000t"),
    "v": (COSINE, COSINE, V(), "v", "t"),
    "score SDE": (LINEAR, "linear", Score(), "score", "999t"),
    "another N": (SHORT, SHORT, Eps(), "eps", "1000t"),
    "log SNR": (COSINE, "cosine", V(), V(), "log_snr"),
    "flow matching": (FLOW, (lambda t: 1 - t, lambda t: t), Velocity(), "velocity", "t"),
    "EDM": (VE, VE, EDM(0.3), EDM(0.3), "edm"),
    "F on a VP path": (LINEAR, "linear", EDM(0.5), "edm", "edm"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_prediction_and_time(case: tuple[NoiseSchedule, Any, Parameterization, Any, str]):
    path, schedule, meaning, prediction, time = case
    data = mixture(DataRange())
    call = network(data, path, meaning, TIME_OF[time])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser = optcov.load(
            call, shape=SHAPE, schedule=schedule, prediction=prediction, time=time, data_range=UNIT,
            images=data.sample(64, torch.Generator().manual_seed(2)).reshape(64, *SHAPE).clamp(-1, 1),
        )  # fmt: skip
    assert_is_exact(denoiser, data, path)


def test_a_time_of_ones_own():
    data = mixture(DataRange())
    call = network(data, LINEAR, Eps(), lambda fed, path: fed**2)

    def root(level: NoiseLevels) -> Tensor:
        return level.t.sqrt()

    denoiser = optcov.load(
        call, shape=SHAPE, schedule="linear", prediction="eps", time=root, data_range=UNIT, check=False
    )
    assert_is_exact(denoiser, data, LINEAR)


def test_integer_times_are_found_out():
    data, fed = mixture(DataRange()), []
    float_call = network(data, LINEAR, Eps(), TIME_OF["n-1"])
    table = torch.arange(1000)

    def call(x: Tensor, n: Tensor) -> Tensor:
        fed.append(n.dtype)
        return float_call(x, table[n])

    denoiser = optcov.load(call, shape=SHAPE, schedule="linear", prediction="eps", time="n-1", data_range=UNIT)
    assert set(fed[1:]) == {torch.int64}  # after the one that failed
    assert_is_exact(denoiser, data, LINEAR)


def test_betas_in_a_list_or_a_tensor():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    path, data = BetaSchedule(betas), mixture(DataRange())
    call = network(data, path, Eps(), TIME_OF["n-1"])
    for given in (betas, betas.tolist(), betas.float().numpy()):
        denoiser = optcov.load(
            call, shape=SHAPE, schedule=given, prediction="eps", time="n-1", data_range=UNIT, check=False
        )
        assert_close(denoiser.schedule.sigma(path.grid()), path.sigma(path.grid()), rtol=1e-6, atol=0)
    assert_is_exact(denoiser, data, path)


KINDS = [
    "linear",
    "scaled_linear",
    "squaredcos_cap_v2",
    "sigmoid",
    "list",
    "squaredcos_cap_v2, zero SNR",
    "linear, zero SNR",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_betas_of_diffusers(kind: str):
    """To the rounding of its float32 products."""
    diffusers = pytest.importorskip("diffusers")
    name, _, zero = kind.partition(",")
    given = {"trained_betas": torch.linspace(1e-3, 0.03, 500).tolist()} if name == "list" else {"beta_schedule": name}
    made = diffusers.DDPMScheduler if name == "sigmoid" else diffusers.DDIMScheduler
    scheduler = made(**given, num_train_timesteps=500, rescale_betas_zero_snr=bool(zero))
    path = schedule_of(dict(scheduler.config))
    assert path.num_steps == 500
    assert_close(path.alpha(path.grid()) ** 2, scheduler.alphas_cumprod.double(), rtol=2e-5, atol=1e-6)
    data = mixture(DataRange())
    denoiser = optcov.load(
        network(data, path, V(), TIME_OF["n-1"]), shape=SHAPE, schedule=scheduler, prediction="v", time="n-1",
        data_range=UNIT, check=False,
    )  # fmt: skip
    assert_is_exact(denoiser, data, path)


STANDARD = DataRange.standardised([0.5, 0.3], [0.25, 0.1])
RANGES: dict[str, Any] = {
    "[0, 1]": DataRange(0, 1),
    "[-0.5, 0.5]": DataRange(-0.5, 0.5),
    "[-1, 1]": DataRange(),
    "standardised": DataRange.standardised(0.1307, 0.3081),
    "standardised channels": STANDARD,
    "latents": DataRange(None, None, None),
}


@pytest.mark.parametrize("name", RANGES)
def test_images_go_in_and_samples_come_out_in_the_range_of_the_network(name: str):
    data_range: DataRange = RANGES[name]
    latents = not data_range.is_bounded
    data = mixture(data_range, scale=6.0 if latents else 1.0)
    call = network(data, LINEAR, Eps(), TIME_OF["n"])
    stated = "unbounded" if latents else data_range
    denoiser = optcov.load(
        call, shape=SHAPE, schedule="linear", prediction="eps", time="n", data_range=stated, check=False
    )
    assert_is_exact(denoiser, data, LINEAR)
    images = data_range.clip(data.sample(256, torch.Generator().manual_seed(3)).reshape(256, *SHAPE).float())
    strategy = optcov.fit("analytic_diag", denoiser, images, num_images=32, num_times=20, progress=False)
    samples = optcov.sample(denoiser, strategy, num_steps=20, count=256, progress=False)
    assert_close(data_range.clip(samples), samples, rtol=0, atol=1e-6)
    scale = images.std(0)
    assert ((samples.mean(0) - images.mean(0)).abs() < 0.3 * scale).all()
    assert ((samples.std(0) / scale).log().abs() < math.log(1.5)).all()


def test_the_range_of_standardised_channels():
    images = torch.rand(5, 2, 3, 3)
    own = (images - torch.tensor([0.5, 0.3]).reshape(2, 1, 1)) / torch.tensor([0.25, 0.1]).reshape(2, 1, 1)
    assert_close(STANDARD.from_unit(images * 2 - 1), own)
    assert_close(STANDARD.to_unit(own), images * 2 - 1)
    assert_close(STANDARD.to_unit(STANDARD.clip(own * 9)), STANDARD.to_unit(own * 9).clamp(-1, 1))
    assert_close(STANDARD.variance_bound, 25.0)
    low, high = (STANDARD.from_unit(torch.full((1, 2, 1, 1), end))[0, :, 0, 0] for end in (-1.0, 1.0))
    assert_close(low, torch.tensor([-2.0, -3.0]))
    assert_close(high, torch.tensor([2.0, 7.0]))
    with pytest.raises(ValueError, match=r"data_range must have a mean and a positive std .*\(got 0\.5 and 0\)"):
        DataRange.standardised(0.5, 0)


def test_an_unstated_range_is_said():
    call = network(mixture(DataRange()), LINEAR, Eps(), TIME_OF["n"])
    with pytest.warns(UserWarning, match=r"data_range was not stated: assuming that the data lie in \[-1, 1\]"):
        optcov.load(call, shape=SHAPE, schedule="linear", prediction="eps", time="n", check=False)
