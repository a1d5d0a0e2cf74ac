"""Bad input: one sentence that names key, value and remedy, at once, and nothing that was on disk is changed."""

import ast
import errno
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CLI, ROOT, TINY, UNET, contents, files
from safetensors.torch import save_file

from optcov import run_folder
from optcov.cli import build, fit
from optcov.training.store import Checkpoint


@pytest.fixture(autouse=True)
def _no_fit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before anything heavy; tests of a failing disk are marked as fitting."""
    if "fits" in request.fixturenames:
        return

    def heavy(*args: Any) -> None:
        raise AssertionError("a stage was fitted before the bad value was refused")

    monkeypatch.setattr(fit, "run_stage", heavy)


@pytest.fixture
def fits() -> None:
    """Marks a test whose command may train."""


def one_sentence(sentence: str, *parts: str) -> None:
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 600
    for part in parts:
        assert part in sentence, f"{part!r} is not in {sentence!r}"


UNKNOWN = [
    ("var=sn_dmp", ["var must be one of", "(got sn_dmp)", "sn_dpm", "did you mean"]),
    ("var=sn", ["var must be one of", "(got sn)", "sn_dpm"]),
    ("sampler=dpm", ["sampler must be one of", "(got dpm)", "did you mean ddpm"]),
    ("schedule=linaer", ["schedule", "linaer", "did you mean linear?"]),
    ("experiment=none_such", ["experiment", "none_such", "oracle"]),
    ("metric=[fd_pixel,fdi]", ["metric must be one of", "(got fdi)", "did you mean fid"]),
    ("hydra/launcher=jobli", ["hydra/launcher", "did you mean joblib?"]),
    ("var=", ["var must be one of", "(got nothing)", "sn_dpm"]),
    ("var=null", ["var must be one of", "(got nothing)", "leave var=null out"]),
    ("~var", ["var must be set", "var=OPTION"]),
    ("~head", ["head must be set", "head=OPTION"]),
    ("~seed", ["seed must be set", "seed=VALUE"]),
    ("sampler=[ddpm,ddim]", ["sampler must be one option", "ddpm", "ddim"]),
    ("sampler=ddpm,ddim", ["sampler must be one value (got ddpm,ddim)", "-m"]),
    ("samplr=ddim", ["samplr is not a key", "did you mean sampler?"]),
    ("seeed=1", ["seeed is not a key", "did you mean seed?"]),
    ("sampler.num_step=3", ["sampler has no key num_step", "did you mean num_steps?"]),
    ("sampler.steps=10", ["sampler has no key steps", "did you mean num_steps?"]),
    ("model.chanels=3", ["model has no key chanels", "did you mean channels"]),
    ("data.root=x", ["data has no key root", "batch_size"]),
    ("var.head.width=3", ["var.head has no key width"]),
    ("var.head=complex", ["var.head must be left out", "(got complex)", "head=complex"]),
    ("+sampler.steps=3", ["sampler.steps is not an argument of optcov.sampler.DDPMSampler", "num_steps?"]),
    ("+sampler.num_steps=3", ["sampler.num_steps is a key already", "leave the +"]),
    ("+warmup=3", ["warmup is not a key", "did you mean warmup_steps?"]),
    ("sampler.x=[", ["sampler.x=[ must be KEY=VALUE", "quote"]),
    ("two words", ["two words must be KEY=VALUE"]),
    ("optimizer.lr=nan", ["optimizer.lr must be a finite number (got nan)"]),
    ("label_dropout=-inf", ["label_dropout must be a finite number (got -inf)"]),
    ("callbacks.ema.decay=inf", ["callbacks.ema.decay must be a finite number (got inf)"]),
    ("model._target_=optcov.model.VNet", ["model._target_", "optcov.model.VNet"]),
    ("num_samples=2.5", ["num_samples must be a valid integer (got 2.5)"]),
    ("seed=-1", ["seed must be at least 0 (got -1)"]),
    ("sampler.num_steps=ten", ["sampler.num_steps must be a valid integer (got ten)"]),
    ("sampler.num_steps=0", ["sampler.num_steps must be at least 1 (got 0)"]),
    ("sampler.num_steps=1e30", ["sampler.num_steps must be a valid integer"]),
    ("sampler.num_steps=${nope}", ["sampler.num_steps must be a value that can be resolved", "nope"]),
    ("sampler.cut=-1", ["sampler.cut must be at least 0 (got -1)"]),
    ("trajectory._target_=x", ["trajectory._target_ must be a class"]),
    ("model.channel_mult=[]", ["model.channel_mult must be a list of at least 1 (got [])"]),
    ("model.channel_mult=[0]", ["model.channel_mult must be at least 1", "0"]),
    ("model.num_blocks=-1", ["model.num_blocks must be at least 1 (got -1)"]),
    ("model.num_heads=0", ["model.num_heads must be at least 1 (got 0)"]),
    ("model.dropout=2", ["model.dropout must be below 1 (got 2)"]),
    ("model.channels=99999999", ["model.channels must be at most 8192"]),
    ("schedule.num_steps=0", ["schedule.num_steps must be at least 1 (got 0)"]),
    ("schedule.beta_max=-1", ["schedule.beta_max must be above 0"]),
    ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches must be at least 1 (got 0)"]),
    ("trainer.log_every_n_steps=-1", ["trainer.log_every_n_steps must be at least 1 (got -1)"]),
    ("trainer.gradient_clip_val=nan", ["trainer.gradient_clip_val must be a finite number"]),
    ("trainer.max_time=2", ["trainer.max_time must be"]),
    ("+trainer.max_epochs=1", ["trainer.max_epochs must be left out (got 1): a fit has trainer.max_steps steps"]),
    ("+trainer.limit_train_batches=0", ["trainer.limit_train_batches must be left out"]),
    ("+trainer.fast_dev_run=true", ["trainer.fast_dev_run must be left out"]),
    ("+trainer.callbacks=[]", ["trainer.callbacks must be left out"]),
    ("optimizer.lr=-1", ["optimizer.lr must be at least 0 (got -1)"]),
    ("data.batch_size=0", ["data.batch_size must be at least 1 (got 0)"]),
    ("callbacks.ema.decay=1", ["callbacks.ema.decay must be below 1 (got 1)"]),
    ("callbacks.ema=3", ["callbacks must be"]),
    ("logger=null", ["logger must be one of"]),
    ("logger.csv=null", ["logger must be"]),
    ("seed=99999999999", ["seed must be below 4294967296"]),
    ("num_samples=99999999999", ["num_samples must be at most 1000000000"]),
    ("num_threads=99999", ["num_threads must be at most 1024"]),
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--nope"], ["--nope", "KEY=VALUE"]),
        (["--cfg=x"], ["--cfg", "'x'", "job"]),
        (["--config-name=nope"], ["nope"]),
        (["trajectory=[0]"], ["trajectory must be one of", "(got 0)", "even"]),
        (["seed=0", "--cfg=job", "seed=-1", "var=nope"], ["var must be one of", "(got nope)"]),
    ],
)
def test_flags_and_options_of_another_kind(run: CLI, arguments: list[str], parts: list[str]):
    """One sentence, not argparse's usage; flags may stand among the overrides."""
    one_sentence(run.refused(*arguments), *parts)


def test_what_the_config_alone_shows_is_refused_before_pytorch_is_imported(tmp_path: Path, untouched: Path):
    """One sentence with the near names, of a process that has imported no PyTorch and no Lightning at its end."""
    code = (
        "import gc, sys, options; from optcov.cli.main import main\n"
        "gc.freeze(); gc.set_threshold(100_000); options.read_once()\n"
        "for task, *arguments in {commands!r}:\n"
        "    sys.argv = [task, *arguments]\n"
        "    try:\n"
        "        main(task)\n"
        "    except SystemExit as error:\n"
        "        print(repr(error.code))\n"
        "print({{'torch', 'lightning', 'wandb', 'pandas', 'matplotlib'}} & sys.modules.keys())"
    )
    commands = [("train", argument, "hydra.run.dir=run") for argument, _ in UNKNOWN]
    for each in ("data=cifar10", "model.channels=9", "var=sn"):
        commands.append(("evaluate", f"run={untouched}", each, "hydra.run.dir=refused"))
    commands += [("sample", "run=nowhere"), ("train", "-m", "var=sn,beta"), ("evaluate",)]
    commands += [("evaluate", f"runs={value}") for value in ("null", "[]", "[null]", "3", "{a:1}", "")]
    done = subprocess.run(
        [sys.executable, "-c", code.format(commands=commands)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True,
    )  # fmt: skip
    *sentences, imported = done.stdout.splitlines()
    assert imported == "set()"
    assert len(sentences) == len(commands), done.stderr
    for (_, *given), sentence in zip(commands, map(ast.literal_eval, sentences), strict=True):
        assert str(sentence).startswith("error: "), given
        one_sentence(sentence, *dict(UNKNOWN).get(given[0] if given else "", []))
    assert files(tmp_path / "run") == set()


def test_an_error_of_our_own_is_one_line_that_says_how_to_see_more(run: CLI, monkeypatch: pytest.MonkeyPatch):
    def fails(*args: Any) -> None:
        raise ZeroDivisionError("a bug\nof two lines")

    monkeypatch.setattr(build, "build", fails)
    sentence = run.refused()
    assert sentence == "ZeroDivisionError: a bug (set HYDRA_FULL_ERROR=1 to see where it was raised)"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["+run=outputs"], ["run", "left out of train", "outputs", "sample and evaluate"]),
        (["+format=png"], ["format", "left out of train", "png", "sample"]),
        (["+sweep=x"], ["sweep", "is not a key"]),
        (["+overrides=[x]"], ["overrides", "is not a key"]),
        (["sampler.num_steps=51"], ["sampler.num_steps", "51", "50"]),
        (["sampler.num_steps=51", "trajectory=quadratic"], ["sampler.num_steps", "51", "50"]),
        (["sampler.num_steps=null"], ["sampler.num_steps", "None", "integer"]),
        (["sampler.clip_x0=maybe"], ["sampler.clip_x0", "maybe"]),
        (["sampler=ddim", "sampler.eta=2"], ["sampler.eta", "2"]),
        (["sampler=ddim", "sampler.eta=high"], ["sampler.eta", "high"]),
        (["+var.cut=2"], ["var.cut", "head"]),
        (["+model.kernel=2"], ["model.kernel", "channels"]),
        (["schedule.num_steps=many"], ["schedule.num_steps", "many"]),
        (["schedule=linear", "schedule.num_steps=10"], ["num_steps must be larger (got 10)"]),
        (["model.channels=wide"], ["model.channels", "wide"]),
        (["model.channels=0"], ["model.channels", "0"]),
        (["model.channel_mult=[1,1,1,1,1]"], ["model.channel_mult", "8 x 8"]),
        (["model.num_heads=3", "model.middle_attention=true"], ["num_heads", "3"]),
        (["trainer.precision=64-true"], ["trainer.precision", "64-true", "32-true"]),
        (["model=mlp"], ["mlp", "unet"]),
        (["model=oracle"], ["data"]),
        (["data=gaussian_mixture"], ["model", "mlp"]),
        (["seed=zero"], ["seed", "zero"]),
        (["num_samples=0"], ["num_samples", "0"]),
        (["num_samples=1"], ["num_samples", "1", "2"]),
        (["sample_batch_size=0"], ["sample_batch_size", "0"]),
        (["~trainer.strategy"], ["trainer.strategy must be set (got nothing)"]),
        (["optimizer._partial_=lightning.Trainer"], ["optimizer._partial_ must be true or false"]),
        (["trajectory._target_=optcov.files.write_atomically"], ["missing 2 required", "correct its _target_"]),
        (["guidance._target_=lightning.Trainer"], ["guidance", "'denoiser'", "correct its _target_"]),
        (["+trainer.plugins={_target_:os.system}"], ["trainer must be made of classes", "(got os.system)"]),
        (["warmup_steps=-1"], ["warmup_steps", "-1"]),
        (["checkpoint_every=0"], ["checkpoint_every", "0"]),
        (["parameterization=noise"], ["parameterization", "noise", "eps"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "fast"]),
        (["callbacks.ema.decay=2"], ["callbacks.ema.decay", "2"]),
        (["trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        (["trainer.max_steps=0"], ["trainer.max_steps", "0"]),
        (["trainer.max_steps=-1"], ["trainer.max_steps", "-1"]),
        (["trainer.precision=9"], ["trainer.precision", "9"]),
        (["trainer.strategy=magic"], ["trainer", "magic"]),
        (["trainer.accelerator=quantum"], ["trainer", "quantum"]),
        (["var=analytic", "var.num_images=1"], ["var.num_images", "1"]),
        (["var=iddpm", "sampler=ddim"], ["sampler.eta must be 1", "LearnedRange", "sampler=ddpm"]),
        (["model.attention_resolutions=[3]"], ["model.attention_resolutions", "[8, 4]", "3"]),
        (["classifier_ckpt=nowhere"], ["classifier_ckpt must be left out", "nowhere"]),
        (["var=beta", "var_ckpt=nowhere"], ["var_ckpt must be left out", "nowhere"]),
        (["sampler._target_=optcov.model.SimpleHead"], ["sampler"]),
        (["+callbacks.x._target_=optcov.model.MLP", "+callbacks.x.data_shape=[2]"], ["callbacks.x must be a callback"]),
        (["logger=wandb", "logger.wandb.mode=sometimes"], ["logger.wandb.mode", "sometimes", "offline"]),
    ],
    ids=lambda value: "_".join(value) if "=" in "".join(value) else "",
)
def test_bad_values(run: CLI, arguments: list[str], parts: list[str]):
    one_sentence(run.refused(*arguments), *parts)
    assert files(run.folder) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_a_device_that_is_not_there(run: CLI):
    one_sentence(run.refused("trainer=gpu"), "trainer")
    assert files(run.folder) == set()


def png(trained: Path) -> bytes:
    return (trained / "samples.png").read_bytes()


def truncated(trained: Path) -> bytes:
    return (trained / "checkpoints" / "mean.safetensors").read_bytes()[:-100]


def headless(trained: Path) -> bytes:
    return (trained / "checkpoints" / "mean.safetensors").read_bytes()[:5]


def empty(trained: Path) -> bytes:
    return b""


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("the_pickle_was_loaded",)


def pickled(trained: Path) -> bytes:
    return pickle.dumps(Trap())


def text(trained: Path) -> bytes:
    return b"{}\n" * 200


@pytest.mark.parametrize("key", ["mean_ckpt", "var_ckpt"])
@pytest.mark.parametrize("make", [png, truncated, headless, empty, pickled, text])
def test_a_file_that_is_no_checkpoint(run: CLI, untouched: Path, key: str, make: Callable[[Path], bytes]):
    path = run.folder / "given.safetensors"
    path.write_bytes(make(untouched))
    mean = [] if key == "mean_ckpt" else [f"mean_ckpt={untouched}/checkpoints/mean.safetensors"]
    one_sentence(run.refused(*mean, f"{key}={path}"), f"{key} = {path}", "give")
    assert files(run.folder) == {"given.safetensors"}


@pytest.mark.parametrize("key", ["mean_ckpt", "var_ckpt"])
def test_a_checkpoint_of_someone_else(run: CLI, untouched: Path, key: str):
    """A safetensors file without our header, and one whose header says less than ours."""
    kind = {"mean_ckpt": "mean", "var_ckpt": "variance"}[key]
    mean = [] if key == "mean_ckpt" else [f"mean_ckpt={untouched}/checkpoints/mean.safetensors"]
    for metadata in (None, {"kind": kind, "identity": "{}"}, {"kind": kind, "identity": "[]"}):
        path = run.folder / "given.safetensors"
        save_file({"weight": torch.zeros(2)}, path, metadata)
        one_sentence(run.refused(*mean, f"{key}={path}"), f"{key} = {path}")
    assert files(run.folder) == {"given.safetensors"}


@pytest.mark.parametrize("key", ["mean_ckpt", "var_ckpt"])
@pytest.mark.parametrize("path", ["nowhere.safetensors", "."])
def test_a_checkpoint_that_is_not_there(run: CLI, untouched: Path, key: str, path: str):
    """With an empty cache, too, var_ckpt is refused before a mean network is trained for it."""
    kind = {"mean_ckpt": "mean", "var_ckpt": "variance"}[key]
    one_sentence(run.refused(f"{key}={path}"), f"{key} = {path}", f"{kind}.safetensors")
    assert files(run.folder) == set()


def test_the_two_checkpoints_swapped(run: CLI, untouched: Path):
    mean, variance = (untouched / "checkpoints" / f"{kind}.safetensors" for kind in ("mean", "variance"))
    one_sentence(run.refused(f"mean_ckpt={variance}"), f"mean_ckpt = {variance}", "mean.safetensors")
    one_sentence(run.refused(f"mean_ckpt={mean}", f"var_ckpt={mean}"), f"var_ckpt = {mean}", "variance.safetensors")
    assert files(run.folder) == set()


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ("model.channels=16", ["model.channels", "8", "16"]),
        ("model.dropout=0.5", ["model.dropout", "0.5"]),
        ("model=unet_keras_ddpm", ["model"]),
        ("schedule.num_steps=40", ["schedule.num_steps", "50", "40"]),
        ("schedule=linear", ["schedule", "Linear"]),
        ("parameterization=v", ["parameterization", "Eps", "V"]),
        ("time_offset=-1", ["time_offset", "0", "-1"]),
    ],
)
def test_a_mean_of_another_network_or_schedule(run: CLI, untouched: Path, other: str, parts: list[str]):
    path = untouched / "checkpoints" / "mean.safetensors"
    one_sentence(run.refused(other, f"mean_ckpt={path}"), f"mean_ckpt = {path}", *parts)
    assert files(run.folder) == set()


def test_a_mean_whose_header_lies_about_its_weights(run: CLI, untouched: Path):
    honest = Checkpoint.load(untouched / "checkpoints" / "mean.safetensors", "mean", "mean_ckpt")
    path = run.folder / "given.safetensors"
    for weights in ({"weight": torch.zeros(2)}, dict(list(honest.weights.items())[1:])):
        Checkpoint("mean", honest.identity, weights).save(path)
        one_sentence(run.refused(f"mean_ckpt={path}"), f"mean_ckpt = {path}", "another network")
    assert files(run.folder) == {"given.safetensors"}


def test_a_variance_of_another_mean_or_strategy(run: CLI, untouched: Path, fits: None):
    other = run("var=beta", "seed=1", "hydra.run.dir=other")
    before = contents(run.folder)
    mean = f"mean_ckpt={other}/checkpoints/mean.safetensors"
    variance = untouched / "checkpoints" / "variance.safetensors"
    one_sentence(run.refused(mean, f"var_ckpt={variance}"), f"var_ckpt = {variance}", "another mean", "leave var_ckpt")
    mean = f"mean_ckpt={untouched}/checkpoints/mean.safetensors"
    for var in (["var=npr_dpm"], ["var=sn_dpm", "head=complex"]):
        sentence = run.refused(mean, f"var_ckpt={variance}", *var)
        one_sentence(sentence, f"var_ckpt = {variance}", "var", "leave var_ckpt")
    assert contents(run.folder) == before | {"run": "folder"}  # Hydra's, empty but for its log


def test_the_mended_command_runs_in_the_same_folder(run: CLI, untouched: Path):
    """A refused run has not taken the folder: the user mends the value and repeats the command."""
    run.refused("mean_ckpt=nowhere.safetensors", "var=beta")
    run(f"mean_ckpt={untouched}/checkpoints/mean.safetensors", "var=beta")


def test_an_output_folder_that_can_not_be_made(run: CLI):
    (run.folder / "file").write_text("mine")
    for folder in ("file", "file/below", "/proc/none_such"):
        one_sentence(run.refused(f"hydra.run.dir={folder}"), folder.partition("/none")[0], "hydra.run.dir")
    assert contents(run.folder).keys() == {"file"}
    assert (run.folder / "file").read_text() == "mine"


def test_a_cache_that_can_not_be_made(run: CLI):
    (run.folder / "file").write_text("mine")
    one_sentence(run.refused("cache_dir=file", "var=beta"), "cache_dir")
    assert (run.folder / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is read-only for root")
def test_a_read_only_folder(run: CLI):
    folder = run.folder / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    one_sentence(run.refused("hydra.run.dir=locked"), "locked", "hydra.run.dir")
    assert not list(folder.iterdir())


def test_a_folder_that_refuses_writing(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """As a read-only folder does, for root as well."""

    def write(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(run_folder, "write_atomically", write)
    one_sentence(run.refused("var=beta"), ".hydra", "Permission denied", "hydra.run.dir")


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files cannot grow beyond ``limit`` bytes: real writes fail half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_scraps(folder: Path) -> None:
    """No half-written file, and no file that claims to be whole."""
    names = files(folder)
    assert not [name for name in names if "partial" in name or name.endswith((".tmp", ".part"))]
    assert not [name for name in names if name.endswith("results.json")]


def test_a_disk_that_is_full_when_a_checkpoint_is_written(
    run: CLI, trained: Path, monkeypatch: pytest.MonkeyPatch, fits: None
):
    shutil.copytree(trained.parent, run.folder, dirs_exist_ok=True)
    before = contents(run.folder)

    write = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        if "safetensors" not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    sentence = run.refused("var=npr_dpm", "hydra.run.dir=new")
    one_sentence(sentence, "variance.safetensors", "No space left", "free space")
    no_scraps(run.folder / "new")
    after = contents(run.folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after.keys() - before.keys() if name.startswith("outputs/cache") and "." in name]


@pytest.mark.parametrize("failing", ["checkpoint", "resume", "samples"])
def test_a_file_that_can_not_grow(run: CLI, failing: str, fits: None):
    """Real failing writes: of the fitted weights, of the point to resume from, and of the samples."""
    arguments = {
        "checkpoint": ["var=beta"],
        "resume": ["var=beta", "checkpoint_every=1"],
        "samples": [
            "experiment=oracle",
            "logger=csv",  # W&B's own files would fail, too
            "var=beta",
            "num_samples=12000",
            "sample_batch_size=12000",
            "sampler.num_steps=1",
            "data.num_train=500",
        ],
    }[failing]
    with full_disk(20_000):
        sentence = run.refused(*arguments, tiny=failing != "samples")
    one_sentence(sentence, "free space")
    no_scraps(run.folder)
    assert not list(run.folder.rglob("*.safetensors"))
    run(*arguments, tiny=failing != "samples")  # with room again


def test_a_disk_that_is_full_when_the_results_are_written(run: CLI, monkeypatch: pytest.MonkeyPatch, fits: None):
    write = run_folder.write_atomically

    def full(path: Path, text: str) -> None:
        if path.name == "results.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(run_folder, "write_atomically", full)
    sentence = run.refused("var=beta")
    one_sentence(sentence, "results.json", "No space left on device", "free space")
    no_scraps(run.folder / "run")
    monkeypatch.undo()
    run("var=beta")  # the same command, with room again, ends the run


def test_as_a_user_sees_it(tmp_path: Path):
    """A process of its own: one line on the terminal, exit code 1."""
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *TINY, *UNET, "sampler.num_steps=0"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    one_sentence(line, "error: sampler.num_steps must be at least 1 (got 0)", "leave sampler.num_steps out")
