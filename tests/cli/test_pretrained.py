"""``model=pretrained``: a network of others from the shell, with heads that are found again, and what is refused."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CLI, TINY, composed, contents, results, weights
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

import optcov
from optcov.adapter.pretrained import sha256_of
from optcov.cli.build import build
from optcov.cli.pretrained import open_pretrained
from optcov.data import DigitsData
from optcov.errors import ConfigError
from optcov.keys import Config
from optcov.registry import node
from optcov.run_folder import Saved
from optcov.training.plan import plan_fits

QUICK = [line for line in TINY if not line.startswith("schedule")] + ["variance_steps=2", "model.check=false"]
NETWORK = """
import torch


class Grey(torch.nn.Module):
    def __init__(self, width: int = 1):
        super().__init__()
        self.level = torch.nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x, time):
        return self.level.expand_as(x)


class Wide(Grey):
    def forward(self, x, time):
        return super().forward(torch.cat([x, x], 1), time)


grey, wide = Grey(), Wide()
"""
GREY = ["parameterization=x0", "schedule=linear", "model.time=t", "model.data_range=[0,1]"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny pipeline of diffusers, of 50 cosine steps."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")
    folder = tmp_path_factory.mktemp("others") / "pipe"
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(pipe: Path) -> Config:
    """Of the pipeline, checked but not opened."""
    return composed("model=pretrained", f"model.source={pipe}", "model.check=false", tiny=False)


def asked(config: Config, key: str, value: Any) -> Config:
    """The config with ``key=value`` on the command line as well."""
    group, _, name = key.partition(".")
    given: dict[str, Any] = {"overrides": [f"{key}={value}"]}
    if name:
        given[group] = getattr(config, group) | {name: value}
    elif isinstance(getattr(config, key), dict):
        given |= {group: node(group, value), "choices": config.choices | {group: value}}
    else:
        given[key] = value
    return config.model_copy(update=given)


@pytest.fixture
def mine(run: CLI, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a network of the user's own."""
    place = run.folder / "grey_network.py"
    place.write_text(NETWORK)
    monkeypatch.syspath_prepend(str(run.folder))
    monkeypatch.delitem(sys.modules, "grey_network", raising=False)
    return place


def pretrained(run: CLI, source: Any, *arguments: str, folder: str = "run") -> Path:
    """A run of a network that is given."""
    run.raw("model=pretrained", f"model.source={source}", *QUICK, f"hydra.run.dir={folder}", *arguments)
    return run.folder / folder


def test_a_folder_of_diffusers_is_fitted_and_evaluated(run: CLI, pipe: Path):
    before = contents(pipe)
    first = pretrained(run, pipe, "var=sn_dpm")
    found = results(first)
    assert (found["model"], found["schedule"], found["nfe"]) == ("pretrained", "cosine", 3)
    saved = Saved.read(first).values
    assert saved["model"]["sha256"] == sha256_of(optcov.load(pipe, data_range=(-1, 1), check=False))
    assert (saved["model"]["time"], saved["model"]["data_range"]) == ("n-1", [-1.0, 1.0])
    assert saved["schedule"]["num_steps"] == 50
    assert not (first / "checkpoints" / "mean.safetensors").exists()
    assert not (run.folder / "outputs" / "cache" / "mean").exists()
    assert results(run("run=run", task="evaluate", tiny=False))["metrics"] == found["metrics"]
    assert contents(pipe) == before


def test_heads_are_found_again_by_weights_and_not_by_place(config: Config, pipe: Path, tmp_path: Path):
    moved = Path(shutil.copytree(pipe, tmp_path / "moved"))
    other = Path(shutil.copytree(pipe, tmp_path / "other"))
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in weights(file).items()}, file, {"format": "pt"})

    def identity(place: Path) -> Any:
        given = open_pretrained(asked(config, "model.source", str(place)))
        assert given is not None
        plan = plan_fits(given.config, build(given.config, given))
        assert plan.mean is None
        return plan.variance

    assert identity(moved) == identity(pipe) != identity(other)
    kept = open_pretrained(config)
    assert kept is not None
    with pytest.raises(ConfigError, match=r"model\.source must be a place of the weights with model\.sha256 = "):
        open_pretrained(asked(kept.config, "model.source", str(other)))


def test_code_is_followed_from_the_users_own_command_line_alone(run: CLI, mine: Path):
    """And its data lie in [0, 1], where its constant answer is grey 128."""
    folder = pretrained(run, "grey_network:grey", *GREY, "var=analytic_imperfect", "var.num_images=4")
    sentence = run.refused("run=run", task="sample", tiny=False)
    assert sentence.startswith("model.source of run = run must be a folder or a file (got grey_network:grey)")
    assert "\n" not in sentence
    drawn = run("run=run", "model.source=grey_network:grey", "num_samples=2", task="sample", tiny=False)
    with np.load(drawn / "samples.npz") as file:
        assert set(np.unique(file[file.files[0]])) <= {127, 128}
    assert "var=npr_dpm model=pretrained model.source=" in run.refused(
        "run=run", "var=npr_dpm", "trust=['grey_network:grey']", task="sample", tiny=False
    )
    assert results(folder)["head"] == "input"  # for it has no feature map


def test_a_variance_that_the_network_answers_with_needs_no_fit(run: CLI, mine: Path):
    settings = ["model.learned_sigma=true", "var=iddpm", "num_samples=2", "~metric.fd_pixel"]
    folder = pretrained(run, "grey_network:wide", *GREY, *settings)
    assert not (folder / "checkpoints").exists()
    assert run("run=run", "model.source=grey_network:wide", "num_samples=2", task="sample", tiny=False).is_dir()


def test_a_state_dict_fills_the_network_beside_it(run: CLI, mine: Path):
    torch.save({"ema": {"module.level": torch.full((1,), 0.25)}}, run.folder / "weights.pt")
    folder = pretrained(
        run, "weights.pt", "model.network={_target_:grey_network.Grey,width:1}", *GREY, "var=beta_tilde"
    )
    assert run.refused("run=run", task="sample", tiny=False).startswith("model.network._target_ of run = run")
    drawn = run("run=run", "trust=[grey_network.Grey]", "num_samples=2", task="sample", tiny=False)
    with np.load(drawn / "samples.npz") as file:
        assert set(np.unique(file[file.files[0]])) <= {63, 64}
    assert results(folder)["parameterization"] == "x0"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("schedule", "linear", "schedule must be the one that model.source states, cosine of 50 steps (got linear"),
        ("parameterization", "v", "parameterization must be the one that model.source states, eps (got v)"),
        ("model.time", "n", "model.time must be n-1, as model.source states (got n)"),
        ("model.time", "soon", "model.time: time must be one of 'n', 'n-1'"),
        ("time_offset", -1, "time_offset must be 0 for model=pretrained (got -1)"),
        ("conditional", True, "model: network must accept (x, time, labels)"),
        ("mean_ckpt", "x", "mean_ckpt must be left out (got x)"),
        ("model.sha256", "a", "model.source must be a place of the weights with model.sha256 = a"),
        ("model.features", "nowhere", "model.features must name a module"),
        ("model.source", "nowhere", "model.source = nowhere does not exist"),
        ("model.source", None, "model.source must be given (got none)"),
        ("model.source", "no_module:net", "model.source = no_module:net cannot be imported"),
        ("model.source", "math:sin", "model.source must be a torch.nn.Module"),
        ("model.source", "edm.pkl", "model.source = edm.pkl must not be a pickle"),
        ("model.source", "edm.pt", "model.network must be given for a file of weights, edm.pt"),
    ],
)  # fmt: skip
def test_what_contradicts_the_source_is_refused_in_a_sentence(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, sentence: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("edm.pkl", "edm.pt"):
        Path(name).write_bytes(b"x")
    with pytest.raises(ConfigError) as refusal:
        open_pretrained(asked(config, key, value))
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({}, "schedule must be stated for model.source, which does not say"),
        ({"schedule": "linear"}, "parameterization must be stated for model.source"),
        ({"schedule": "linear", "parameterization": "x0"}, "model.time must be stated for model.source"),
    ],
)
def test_what_nobody_states_is_asked_for(config: Config, mine: Path, stated: dict[str, str], sentence: str):
    for key, value in {"model.source": "grey_network:grey", **stated}.items():
        overrides = config.overrides
        config = asked(config, key, value)
        config = config.model_copy(update={"overrides": [*overrides, *config.overrides]})
    with pytest.raises(ConfigError, match=sentence):
        open_pretrained(config)


def test_data_of_another_shape_are_refused(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DigitsData, "data_shape", (3, 8, 8))
    with pytest.raises(
        ConfigError, match=r"data must be of the shape of model\.source, \[1, 8, 8\] \(got \[3, 8, 8\]\)"
    ):
        open_pretrained(config)


def test_a_run_of_ours_states_everything(config: Config, untouched: Path):
    given = open_pretrained(asked(config, "model.source", str(untouched)))
    assert given is not None
    assert (given.config.schedule["num_steps"], given.config.choices["schedule"]) == (50, "cosine")
    kept = weights(untouched / "checkpoints" / "mean.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in given.denoiser.state_dict().items())
    with pytest.raises(ConfigError, match=r"model\.time must be left out for a network of optcov \(got n\)"):
        open_pretrained(asked(given.config, "model.time", "n"))


def test_a_refusal_leaves_nothing_behind(run: CLI):
    assert run.refused("model=pretrained", *QUICK, tiny=False).startswith("model.source must be given (got none)")
    assert not list(run.folder.iterdir()) or not (run.folder / "outputs" / "cache").exists()


def test_conventions_that_fit_worse_are_said(config: Config, mine: Path, caplog: pytest.LogCaptureFixture):
    """The constant 0.5 is nearer to digits in any other form than to those of which black is -1."""
    for key, value in {"model.source": "grey_network:grey", "model.check": True, "model.time": "t"}.items():
        config = asked(config, key, value)
    for group, option in {"schedule": "linear", "parameterization": "x0"}.items():
        config = asked(config, group, option)
    overrides = ["schedule=linear", "parameterization=x0"]
    open_pretrained(config.model_copy(update={"overrides": overrides}))
    assert "the network fits these images better with" in caplog.text
