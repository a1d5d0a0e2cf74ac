"""Everything in conf/ works: options are found by globbing, so that a new yaml is tested without a line here."""

import inspect
from pathlib import Path

import pytest
import torch
from command_line import CLI, ROOT, composed, results
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from optcov.cli.build import build
from optcov.keys import Config
from optcov.parts import Parts
from optcov.sampler import sample
from optcov.variance.base import Calibrated

CONF = ROOT / "conf"
GROUPS = sorted(
    path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "mode")
)  # mode: sample.py


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GIVEN_BY_US = {
    "config",
    "denoiser",
    "parameterization",
    "data_shape",
    "feature_channels",
    "num_classes",
    "params",
    "self",
    "args",
    "kwargs",
}
VECTORS = {"data": ["gaussian_mixture"], "model": ["mlp", "oracle"]}  # which need each other


def test_the_groups_are_those_of_the_design():
    assert set(GROUPS) >= {
        "data", "model", "schedule", "var", "sampler", "trajectory", "metric", "trainer", "logger", "callbacks",
        "experiment",
    }  # fmt: skip


def rounds() -> list[dict[str, str]]:
    """Choices of an option of each group, in as many rounds as the largest group has options: each occurs in one."""
    groups = {
        group: [option for option in options(group) if option not in VECTORS.get(group, [])]
        for group in GROUPS
        if group != "experiment"
    }
    longest = max(map(len, groups.values()))
    images = [{group: each[i % len(each)] for group, each in groups.items()} for i in range(longest)]
    return images + [{"data": data, "model": model} for data in VECTORS["data"] for model in VECTORS["model"]]


ROUNDS = rounds()


def test_every_option_occurs_in_a_round():
    for group in set(GROUPS) - {"experiment"}:
        assert {choices[group] for choices in ROUNDS if group in choices} == set(options(group))


@pytest.mark.parametrize("choices", ROUNDS, ids=lambda choices: choices.get("var", choices["model"]))
def test_every_option_composes_passes_the_preflight_and_shows_all_that_can_be_set(choices: dict[str, str]):
    config = composed(*(f"{group}={option}" for group, option in choices.items()), tiny=False).model_dump()
    assert "${" not in str(config)
    for group, option in choices.items():
        for node in [config[group]] if "_target_" in config[group] else list(config[group].values()):
            target = get_object(node["_target_"])
            if target.__module__.startswith("optcov"):
                hidden = set(inspect.signature(target).parameters) - GIVEN_BY_US - set(node)
                if option == "gaussian_mixture":
                    hidden -= {"random_flip"}  # has no meaning for vectors
                if group == "model":
                    hidden -= {"patch"}  # a comment names it: listed, it would change what identifies each U-Net
                assert not hidden, f"{group}={option} does not list {hidden}"


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_passes_the_preflight(experiment: str):
    assert "${" not in str(composed(f"experiment={experiment}", tiny=False).model_dump())


def fitted(*arguments: str) -> tuple[Config, Parts]:
    """The parts of a tiny config; what calibrates is calibrated on few images, heads keep their first weights."""
    cfg = composed(*arguments)
    parts = build(cfg)
    torch.manual_seed(0)
    for parameter in parts.denoiser.parameters():  # the last layer starts at zero: let it say something
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    parts.denoiser.eval()
    if isinstance(parts.strategy, Calibrated):
        parts.strategy.calibrate(parts.denoiser, [parts.data.calibration(4)], 0)
    return cfg, parts


def drawn(cfg: Config, parts: Parts, steps: int) -> torch.Tensor:
    """Two samples in a number of steps."""
    times = instantiate(cfg.trajectory).times(parts.denoiser.schedule, steps)
    assert times.diff().gt(0).all()
    assert 0 < times[0] <= times[-1] <= 1
    return sample(parts.denoiser, parts.strategy, parts.sampler, times, 2, progress=False)


@pytest.mark.parametrize("head", options("head"))
@pytest.mark.parametrize("beside", [[], ["data=gaussian_mixture", "model=mlp"]], ids=["images", "vectors"])
def test_every_head_reads_every_kind_of_data(head: str, beside: list[str]):
    cfg = composed(f"head={head}", *beside)
    parts = build(cfg)
    assert drawn(cfg, parts, 3).isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=unet_keras_ddpm"],
        [
            "model.scale_shift=true",
            "model.num_heads=2",
            "model.attention_resolutions=[8,4]",
            "model.channel_mult=[1,2]",
        ],
        ["model=unet_iddpm_cifar10", "model.channel_mult=[1,1]", "model.num_blocks=1"],
        ["parameterization=v"],
        ["parameterization=x0", "time_offset=-1"],
        ["schedule=linear", "var=iddpm"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_variants_run_whole(run: CLI, arguments: list[str]):
    found = results(run(*arguments))
    assert found["metrics"]["fd_pixel_8"] > 0
    assert found["model"] == dict(a.split("=") for a in arguments).get("model", "unet")


@pytest.mark.parametrize(
    "arguments",
    [["data=gaussian_mixture", "model=mlp", "var=sn_dpm"], ["data=gaussian_mixture", "model=oracle", "var=analytic"],
     ["experiment=oracle", "var=npr_dpm", "num_samples=8"]],
    ids=["mlp", "oracle", "experiment"],
)  # fmt: skip
def test_vectors_run_whole(run: CLI, arguments: list[str]):
    few = ["data.num_train=64", "data.batch_size=16", "sample_batch_size=8"]
    folder = run(*arguments, *few, *(["var.num_images=4"] if "var=analytic" in arguments else []))
    found = results(folder)
    assert found["data"] == "gaussian_mixture"
    assert found["metrics"]["fd_pixel_8"] > 0
    assert (folder / "checkpoints" / "mean.safetensors").exists() == ("model=mlp" in arguments)
    assert (folder / "checkpoints" / "variance.safetensors").exists()


@pytest.mark.parametrize("name", ["config", "sample", "evaluate"])
def test_every_entry_point_shows_its_config(run: CLI, name: str, capsys: pytest.CaptureFixture[str]):
    task = "train" if name == "config" else name
    run.raw("--cfg", "job", task=task)
    shown = capsys.readouterr().out
    for group in GROUPS:
        assert group == "experiment" or f"\n{group}:" in f"\n{shown}"
    assert "seed: 0" in shown
    run.raw("--help", task=task)
    shown = capsys.readouterr().out
    assert "python train.py model=unet var=sn_dpm" in shown
    assert "var: " in shown
    assert "sn_dpm" in shown
    assert not list(Path(run.folder).iterdir())


def test_a_new_file_in_a_group_is_all_that_an_option_needs(tmp_path: Path):
    """An optimizer by ``_target_``, as a user would add one."""
    cfg = composed("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.weight_decay")
    assert instantiate(cfg.optimizer).func is torch.optim.SGD


def test_data_that_are_read_from_files_lie_where_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    roots = {}
    for place in ("data", "elsewhere"):
        monkeypatch.setenv("OPTCOV_DATA", place)
        roots[place] = {
            path.stem: root
            for path in (CONF / "data").glob("*.yaml")
            if (root := OmegaConf.load(path).get("root")) is not None
        }
    assert roots["data"].keys() == {"arrays", "celeba", "cifar10", "huggingface", "image_folder", "tensors"}
    assert roots["elsewhere"] == {name: f"elsewhere{root.removeprefix('data')}" for name, root in roots["data"].items()}
