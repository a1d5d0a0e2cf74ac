"""Every recipe of docs/your_network.md runs on a tiny network of its convention, and the check at loading is content.

The networks are exact ones of white data, whose variance is their one weight: a recipe that states a wrong convention,
or misses the weights in a file, is warned of.
"""

import math
import re
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optcov
from optcov.parameterization import EDM, X0, Eps, Parameterization, V, Velocity
from optcov.schedule import (
    BetaSchedule,
    CosineSchedule,
    FlowSchedule,
    LinearSchedule,
    NoiseSchedule,
    VESchedule,
    VPSDESchedule,
)
from optcov.schedule.levels import per_sample

PAGE = Path(__file__).parents[1] / "docs" / "your_network.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
RECIPES = {
    section.partition("\n")[0]: code
    for section in PAGE.read_text().split("\n## ")[1:]
    for code in BLOCK.findall(section)
}
VARIANCE = 0.09


class Exact(nn.Module):
    """The network of white data, in some convention; with `weight` 1 instead of their variance, a wrong one."""

    def __init__(
        self,
        path: NoiseSchedule,
        meaning: Parameterization,
        time_of: Callable[[Tensor], Tensor],
        weight: float = VARIANCE,
    ) -> None:
        super().__init__()
        self.path, self.meaning, self.time_of = path, meaning, time_of
        self.variance = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.tail = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # the other half of 2C channels

    def forward(self, x: Tensor, fed: Tensor) -> Tensor:
        level = self.path.levels(self.time_of(fed.double()))
        alpha, sigma = per_sample(level.alpha, x.double()), per_sample(level.sigma, x.double())
        shrunk = x.double() / (alpha**2 * self.variance + sigma**2)
        return self.meaning.target(alpha * self.variance * shrunk, sigma * shrunk, level)


def white(channels: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Images of white noise on grey levels, of the variance above on [-1, 1]."""
    noise = torch.randn(64, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * VARIANCE**0.5
    return (noise.clamp(-1, 1) * 127.5 + 127.5).round() / 255 * (high - low) + low


BETAS = torch.linspace(1e-3, 0.02, 1000, dtype=torch.float64)


def own_module(folder: Path) -> dict[str, Any]:
    half = Exact(CosineSchedule(1000), Eps(), lambda n: n / 1000, VARIANCE / 4)

    def network(x: Tensor, n: Tensor) -> Tensor:  # of data on [0, 1], around 1/2
        alpha = per_sample(half.path.alpha(n.double() / 1000), x)
        with torch.no_grad():
            return half(x - alpha / 2, n).float()

    return {"network": network, "images": white(1, 0.0, 1.0)}


def diffusers_folder(folder: Path) -> dict[str, Any]:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "my_pipeline")
    return {}


def improved_ddpm(folder: Path) -> dict[str, Any]:
    class Doubled(Exact):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return torch.cat([super().forward(x, n), self.tail.expand(x.shape)], 1)

    path = BetaSchedule(BETAS)
    torch.save(Doubled(path, Eps(), lambda n: (n + 1) / 1000).state_dict(), folder / "ema_0.9999_500000.pt")
    model = Doubled(path, Eps(), lambda n: (n + 1) / 1000, 1.0)
    return {"model": model, "diffusion": SimpleNamespace(betas=BETAS.numpy()), "images": white(3)}


def score_sde(folder: Path) -> dict[str, Any]:
    path = VPSDESchedule(1000)
    trained = Exact(path, Eps(), lambda fed: fed / 999)
    model = Exact(path, Eps(), lambda fed: fed / 999, 1.0)
    state = {"module." + key: value for key, value in model.state_dict().items()}
    ema = {"decay": 0.999, "num_updates": 1, "shadow_params": [each.data for each in trained.parameters()]}
    torch.save({"optimizer": {}, "model": state, "ema": ema, "step": 1}, folder / "checkpoint_8.pth")
    return {"model": model, "images": white(3)}


def edm(folder: Path) -> dict[str, Any]:
    path = VESchedule(1000, 0.002, 80.0)
    return {"net": Exact(path, X0(), lambda sigma: path.time(-2 * sigma.log())), "images": white(3)}


def lucidrains(folder: Path) -> dict[str, Any]:
    model = Exact(BetaSchedule(BETAS), V(), lambda n: (n + 1) / 1000)
    return {
        "diffusion": SimpleNamespace(model=model, betas=BETAS.float(), objective="pred_v"), "images": white(3)
    }  # fmt: skip


def torchcfm(folder: Path) -> dict[str, Any]:
    exact = Exact(FlowSchedule(), Velocity(), lambda t: 1 - t)

    def model(t: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return -exact(x, t)

    return {"model": model, "images": white(3)}


def latents(folder: Path) -> dict[str, Any]:
    drawn = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    network = Exact(LinearSchedule(1000), Eps(), lambda n: (n + 1) / 1000, 4.0)
    return {"network": network, "latents": drawn, "decode": lambda z: z.repeat_interleave(2, 2).tanh()}


INSTANCES = {
    "Your own module": own_module,
    "A diffusers folder": diffusers_folder,
    "A file of Improved DDPM or guided-diffusion": improved_ddpm,
    "A checkpoint of score_sde": score_sde,
    "A wrapper in the style of EDM": edm,
    "GaussianDiffusion of lucidrains": lucidrains,
    "Flow matching in the convention of torchcfm": torchcfm,
    "Latents": latents,
}


def test_every_recipe_has_an_instance():
    assert RECIPES.keys() == INSTANCES.keys()


@pytest.mark.parametrize("name", INSTANCES)
def test_the_recipe_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    project = types.ModuleType("my_project")
    project.__dict__.update(INSTANCES[name](tmp_path))
    monkeypatch.setitem(sys.modules, "my_project", project)
    monkeypatch.chdir(tmp_path)
    fit, namespace = optcov.fit, dict[str, Any]()

    def quick(name: str, denoiser: optcov.denoiser.Denoiser, *given: Any, **settings: Any) -> Any:
        settings |= {"steps": 5} if "steps" in settings else {}
        settings |= {"num_times": 8, "num_images": 16} if "num_times" in settings else {}
        return fit(name, denoiser, *given, **settings)

    monkeypatch.setattr(optcov, "fit", quick, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name == "A diffusers folder":  # its weights are random
            warnings.filterwarnings("ignore", message="the network fits smooth random images better")
        exec(RECIPES[name], namespace)
    if "samples" in namespace:
        assert namespace["samples"].isfinite().all()
        assert namespace["samples"].shape[1:] == namespace["denoiser"].data_shape
    printed = capsys.readouterr().out
    if name == "Latents":  # of white Gaussian data the density is known, and the bound on it nearly tight
        entropy = math.log(2 * math.pi * math.e * 4.0) / 2
        assert entropy - 0.1 < float(printed.split()[0]) < entropy + 0.3
        assert printed.count("transition") == 9
    elif "bits" in namespace:
        assert 0 < namespace["bits"].value < 20


FITTED: dict[str, tuple[str, NoiseSchedule, Parameterization, Any, Callable[[Tensor], Tensor]]] = {
    "latents": ("npr_dpm", LinearSchedule(1000), Eps(), "n-1", lambda n: (n + 1) / 1000),
    "flow": ("npr_dpm", FlowSchedule(), Velocity(), "1000t", lambda n: n / 1000),
    "EDM": ("sn_dpm", NARROW := VESchedule(1000, 0.02, 20.0), EDM(0.5), "edm", lambda c: NARROW.time(-8 * c)),
}


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_head_restores_the_variance_of_unbounded_data(name: str):
    """Five steps of exact networks leave a third of the variance of white data, and all of it with the right C."""
    var, path, meaning, time, time_of = FITTED[name]
    exact = Exact(path, meaning, time_of, 4.0 if name == "latents" else 0.25)

    def call(x: Tensor, fed: Tensor) -> Tensor:
        c_in = meaning.c_in(path.levels(time_of(fed.double())))
        with torch.no_grad():
            return exact(x if c_in is None else x.double() / per_sample(c_in, x.double()), fed).float()

    stated: dict[str, Any] = {"shape": (2, 4, 4), "prediction": meaning, "schedule": path, "time": time}
    denoiser = optcov.load(call, **stated, data_range="unbounded", check=False)
    spread = exact.variance.item()
    data = torch.randn(256, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * spread**0.5
    strategy = optcov.fit(var, denoiser, data, 100, progress=False)
    found = [float(optcov.sample(denoiser, each, 5, 256, progress=False).var()) for each in (None, strategy)]
    assert found[0] < 0.4 * spread
    assert found[1] == pytest.approx(spread, rel=0.15)
