"""A run's folder from a stranger: its config is data, and nothing in it runs code, reads the environment or writes."""

import datetime
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import CLI, TINY, files, results
from safetensors.torch import save_file
from torch import nn

from optcov.adapter.own import open_own
from optcov.checkpoint import digest_of
from optcov.registry import CONF
from optcov.run_log import RunLog
from optcov.signatures import Signature
from optcov.targets import targets
from optcov.trust import is_allowed


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The trained run's folder alone."""
    return Path(shutil.copytree(trained, tmp_path / "received"))


def change(folder: Path, key: str, value: Any) -> None:
    path = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    node, (*groups, name) = config, key.split(".")
    for group in groups:
        node = node[group]
    node[name] = value
    path.write_text(yaml.safe_dump(config))


@pytest.fixture
def received(run: CLI, copy: Path) -> Callable[..., str]:
    """Changes the copy, gives it to sample.py, and returns the sentence of refusal; nothing has been written then."""

    def refused(key: str, value: Any, *arguments: str) -> str:
        change(copy, key, value)
        before = files(run.folder)
        sentence = run.refused("run=received", *arguments, task="sample", tiny=False)
        assert "\n" not in sentence
        assert files(run.folder) == before
        return sentence

    return refused


@pytest.mark.parametrize("key", ["sampler._target_", "model.time_embedding._target_"])
def test_a_class_of_others_is_refused_by_name(received: Callable[..., str], key: str):
    sentence = received(key, "os.system")
    for part in (f"{key} of run = received", "os.system", "trust=[os.system]"):
        assert part in sentence


HOSTILE = [
    "subprocess.Popen", "builtins.exec", "numpy.load", "numpy.savetxt", "joblib.load", "torch.load",
    "optcov.files.os.system",  # another module's function, through ours
    "optcov.files.Path",
    "optcov.files.write_atomically",  # ours, but no class
    "optcov.checkpoint.Checkpoint.load",
    "optcov.report.write.write_report",
    "optcov.training.wandb.wandb_logger",  # it opens a run of the user's at W&B
    "optcov.training.wandb.WandbRun",
    "optcov.cli.report.SweepReport",
    "optcov.__main__.command",
    "optcov../tmp/mine.Class",
    "optcov./tmp/mine.Class",
    "torch.optim.os.system",
    "lightning.pytorch.loggers.os.system",
    "lightning.pytorch.loggers.CSVLogger",  # it makes folders
    "lightning.pytorch.callbacks.LambdaCallback.x",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "optcov.sampler.NoSuchSampler",
    "",
    "optcov.",
]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["sampler", "model", "model.time_embedding", "data.mixture", "metric.fid.features", "callbacks.x", "new"]
)
def test_only_what_belongs_in_a_place_is_allowed_there(place: str):
    assert not [target for target in HOSTILE if is_allowed(place, target)]


def test_every_class_of_our_own_options_is_allowed_in_its_place():
    """And the functions are those that the options name; nothing is allowed that imports what it should not."""
    seen = 0
    for path in sorted(CONF.glob("*/*.yaml")):
        group = path.parent.name
        if group in ("hydra", "mode", "experiment"):
            continue
        content = yaml.safe_load(path.read_text())
        content.pop("defaults", None)
        for key, node in targets(content if "@package _global_" in path.read_text() else {group: content}):
            assert is_allowed(key, node["_target_"]), f"{key}: {node['_target_']}"
            seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler._args_", [3]),
        ("sampler._recursive_", False),
        ("model._convert_", "object"),
        ("model.time_embedding.defaults", []),
        ("${seed}", 1),
        ("sampler.num_steps", "???"),
        ("choices.seed", "[1]"),
        ("choices.data", "digits,cifar10"),
        ("choices", ["digits"]),
        ("model", "unet"),
        ("sampler", {}),
        ("seed", "0"),
        ("optimizer.lr", datetime.date(2026, 1, 1)),
    ],
)
def test_what_no_saved_config_holds_is_refused(received: Callable[..., str], key: str, value: Any):
    assert received(key, value).startswith("run must be a folder ")


def test_what_a_stranger_writes_does_not_control_the_terminal(received: Callable[..., str]):
    sentence = received("choices.data", "\x1b]0;title\x07[bold]\n")
    assert sentence.isprintable()


def test_the_overrides_of_a_received_run_are_only_told(run: CLI, copy: Path):
    """They are what the run was made with; the config is what counts."""
    lines = ["callbacks.x._target_=os.system", "+hydra.callbacks.x._target_=os.system", "hydra/launcher=joblib"]
    (copy / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(lines))
    folder = run("run=received", "num_samples=2", task="sample", tiny=False)
    assert (folder / "samples.npz").is_file()


def test_a_folder_of_output_that_is_a_link_is_refused(run: CLI, copy: Path):
    (run.folder / "elsewhere").mkdir()
    (copy / "sample").symlink_to(run.folder / "elsewhere")
    run_dir = run.folder / "elsewhere"
    with pytest.raises(SystemExit, match="its sample is a link"):
        run.raw("run=received", task="sample")
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize(
    "identity",
    ['{"a":' * 9000, "[]", '{"schedule": {"_target_": "os.system"}}', '{"data_shape": [1e999], "parameterization": 3}'],
)
def test_a_checkpoint_whose_config_is_hostile(tmp_path: Path, identity: str):
    """Read alone, as optcov.load does; it is data, and one sentence says what is wrong."""
    path = tmp_path / "mean.safetensors"
    metadata = {"kind": "mean", "identity": identity, "sha256": digest_of({"w": torch.zeros(1)})}
    save_file({"w": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=r"mean\.safetensors"):
        open_own(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cache_dir", "${oc.env:HOME}"),
        ("data.root", "x${seed}"),
        ("data.mirrors", ["http://x/${oc.env:HOME}"]),
        ("sampler.num_steps", "${oc.decode:1}"),
        ("var.head._target_", "${oc.env:HOME}"),
    ],
)
def test_no_interpolation_is_resolved(run: CLI, copy: Path, key: str, value: str):
    change(copy, key, value)
    sentence = run.refused("run=received", task="evaluate", tiny=False)
    assert "an interpolation in" in sentence
    assert str(Path.home()) not in sentence.replace(str(run.folder), "")


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("hydra", {"callbacks": {"x": {"_target_": "os.system"}}}, "the key hydra"),
        ("sampler.defaults", ["/hydra/launcher: joblib"], "a defaults list"),
        ("choices.data", "../../../etc/passwd", "the choice data="),
        ("choices.hydra/launcher", "joblib", "the choice hydra/launcher"),
    ],
)
def test_nothing_steers_the_composition(run: CLI, copy: Path, key: str, value: Any, part: str):
    change(copy, key, value)
    assert part in run.refused("run=received", task="sample", tiny=False)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "x" * (1 << 20) + ": 1\n",
        "a: !!python/object/apply:os.mkdir [made]\n",
        "[" * 900,
        "a: 2026-99-99\n",
        "a: " + "1" * 5000 + "\n",
        "a: [\n",
        "3\n",
        "",
    ],
    ids=["aliases", "size", "tags", "depth", "day", "digits", "syntax", "number", "empty"],
)
@pytest.mark.parametrize("name", ["config", "overrides"])
def test_a_file_that_is_no_config(run: CLI, copy: Path, name: str, text: str):
    (copy / ".hydra" / f"{name}.yaml").write_text(text)
    sentence = run.refused("run=received", task="sample", tiny=False)
    assert sentence.startswith("run must be a folder that train.py has printed (got received)")
    assert not (run.folder / "made").exists()


def test_keys_of_place_are_those_of_this_machine(run: CLI, copy: Path):
    """What a stranger writes there names no folder that is written, and no address that is asked."""
    for key in ("cache_dir", "output_dir", "logger.csv.save_dir"):
        change(copy, key, str(run.folder / "theirs"))
    folder = run("run=received", task="evaluate", tiny=False)
    assert results(folder)["metrics"]["fd_pixel_8"] > 0
    assert not (run.folder / "theirs").exists()
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert config["cache_dir"] == "outputs/cache"


def test_a_class_that_the_users_own_command_line_or_config_names_is_trusted(
    run: CLI, monkeypatch: pytest.MonkeyPatch, trained: Path
):
    """A network of the user's own, in a folder of options of their own: it trains, samples and is evaluated."""
    (run.folder / "mine.py").write_text(
        "from optcov.model import UNet\n\n\n"
        "class Net(UNet):\n"
        "    def __init__(self, data_shape, width: int = 8):\n"
        "        super().__init__(data_shape, channels=width, channel_mult=[1, 1], attention_resolutions=[])\n"
    )
    monkeypatch.syspath_prepend(str(run.folder))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (run.folder / "options" / "model").mkdir(parents=True)
    (run.folder / "options" / "model" / "net.yaml").write_text("_target_: mine.Net\nwidth: 8\n")
    besides = [line for line in TINY if not line.startswith("sample_batch")] + ["var=beta", "hydra.run.dir=run"]
    for arguments in (["--config-dir=options"], ["--config-dir", "options"]):
        run.raw(*arguments, "model=net", *besides)
        assert results(run.folder / "run")["model"] == "net"
        place = [f"hydra.run.dir={len(arguments)}"]
        run.raw(*arguments, "run=run", "num_samples=2", *place, task="sample")
        assert (run.folder / str(len(arguments)) / "samples.npz").is_file()
    assert "mine.Net" in run.refused("run=run", task="sample", tiny=False)
    found = results(run("run=run", "trust=[mine.Net]", task="evaluate", tiny=False))
    assert found["metrics"] == results(run.folder / "run")["metrics"]
    assert found["model"] == "net"
    assert "width" in run.refused("run=run", "trust=[mine.Net]", "+model.widht=3", task="evaluate", tiny=False)


class Parent(nn.Module):
    def __init__(self, size: int, *, names: list[str] | None = None, **rest: Any) -> None:
        super().__init__()


class Child(Parent):
    pass


def test_a_signature_is_read_as_it_is_imported():
    """The source says what importing says, for a class, a child without a constructor of its own, and a function."""
    classes = ["optcov.sampler.DDPMSampler", "optcov.data.ImageFolderData", "optcov.variance.fixed.Beta"]
    others = ["optcov.training.wandb.wandb_logger", f"{__name__}.Child", "optcov.oracle.GaussianMixture"]
    for target in [*classes, *others]:
        read, imported = Signature.read(target), Signature.imported(target)
        assert read is not None
        assert (read.is_class, read.takes_any) == (imported.is_class, imported.takes_any)
        assert set(read.parameters) == set(imported.parameters)


@pytest.mark.parametrize("name", ["train.log", "checkpoints"])
def test_no_link_leads_out_of_a_folder_in_which_a_run_is_repeated(run: CLI, copy: Path, name: str):
    (run.folder / "precious").write_text("precious")
    shutil.rmtree(copy / name, ignore_errors=True)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(run.folder / "precious")
    said = run.refused("var=sn_dpm", "hydra.run.dir=received")
    assert name in said
    assert (run.folder / "precious").read_text() == "precious"


@pytest.mark.parametrize("link", ["hard", "FIFO"])
def test_a_log_is_a_file_of_its_folder(tmp_path: Path, link: str):
    path, other = tmp_path / "train.log", tmp_path / "precious"
    if link == "hard":
        other.write_text("precious\n")
        path.hardlink_to(other)
        RunLog(path).stream.close()
        assert path.read_text() == "precious\n"
        assert not path.samefile(other)
    else:
        os.mkfifo(path)
        with pytest.raises(OSError, match=re.escape(str(path))):  # at once, not when someone reads it
            RunLog(path)


def test_no_group_as_a_whole_is_made_later(received: Callable[..., str]):
    assert "it holds the key trainer._partial_" in received("trainer._partial_", True)


def test_files_of_two_runs_are_not_mixed(run: CLI, copy: Path):
    """Config, weights and results that are each intact."""
    other = run("var=sn_dpm", "seed=1", "hydra.run.dir=other")
    shutil.copy(other / ".hydra" / "config.yaml", copy / ".hydra" / "config.yaml")
    said = run.refused("run=received", task="sample", tiny=False)
    assert "received/checkpoints/mean.safetensors must be of run = received (got one trained with seed" in said
    said = run.refused("var=sn_dpm", "seed=1", "hydra.run.dir=received")
    assert "results.json, it is of another config" in said
