"""A run's folder from a stranger: its config is data, and nothing in it runs code, reads the environment or writes."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CLI, TINY, files, results
from torch import nn

from optcov.signatures import Signature


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


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "optcov.files.os.system",  # another module's function, through ours
        "optcov.files.Path",
        "optcov.files.write_atomically",  # ours, but no class
        "torch.load",
        "torch.optim.os.system",
        "lightning.pytorch.loggers.os.system",
        "optcov.sampler.NoSuchSampler",
        "builtins.exec",
    ],
)
@pytest.mark.parametrize("key", ["sampler._target_", "model.time_embedding._target_"])
def test_a_class_of_others_is_refused_by_name(run: CLI, copy: Path, key: str, target: str):
    change(copy, key, target)
    sentence = run.refused("run=received", task="sample", tiny=False)
    for part in (f"{key} of run = received", target, f"trust=[{target}]"):
        assert part in sentence
    assert "\n" not in sentence
    assert files(run.folder) == {f"received/{name}" for name in files(copy)}


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x${seed}", "${oc.decode:1}"])
@pytest.mark.parametrize("key", ["cache_dir", "data.root", "sampler.num_steps", "var.head._target_"])
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
        "[" * 5000,
        "a: [\n",
        "3\n",
        "",
    ],
    ids=["aliases", "size", "tags", "depth", "syntax", "number", "empty"],
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
