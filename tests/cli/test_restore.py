"""sample.py and evaluate.py on a run's folder: the same samples and score again, other samplers, no training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CLI, contents, files, results
from PIL import Image

from optcov.cli import fit
from optcov.report import picture
from optcov.training import Checkpoint


@pytest.fixture(autouse=True)
def _no_fit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fits" in request.fixturenames:
        return

    def heavy(*args: Any) -> None:
        raise AssertionError("evaluate.py and sample.py must not train")

    monkeypatch.setattr(fit, "run_stage", heavy)


@pytest.fixture
def fits() -> None:
    """Marks a test that makes a run of its own."""


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The trained run's folder alone, moved: without its cache."""
    return Path(shutil.copytree(trained, tmp_path / "moved"))


@pytest.mark.parametrize("arguments", [[], ["sample_batch_size=3"], ["sample_batch_size=1"]])
def test_the_score_comes_out_again(run: CLI, untouched: Path, arguments: list[str]):
    folder = run(f"run={untouched}", *arguments, task="evaluate", tiny=False)
    assert results(folder)["metrics"] == results(untouched)["metrics"]
    assert (folder / "samples.png").read_bytes() == (untouched / "samples.png").read_bytes()
    again, first = results(folder), results(untouched)
    for key in (
        "var",
        "sampler",
        "trajectory",
        "num_steps",
        "nfe",
        "seed",
        "reference",
        "num_samples",
        "data",
        "model",
    ):
        assert again[key] == first[key]


def test_other_steps_samplers_and_counts(run: CLI, untouched: Path):
    folder = run(
        f"run={untouched}", "sampler=ddim", "sampler.num_steps=4", "num_samples=12", "trajectory=quadratic",
        task="evaluate", tiny=False,
    )  # fmt: skip
    found = results(folder)
    assert list(found["metrics"]) == ["fd_pixel_12"]
    assert [found[key] for key in ("var", "sampler", "trajectory", "num_steps", "nfe")] == [
        "sn_dpm", "ddim", "quadratic", 4, 4,
    ]  # fmt: skip
    assert files(folder) == {"results.json", "samples.png", ".hydra/config.yaml", ".hydra/overrides.yaml"}


def test_a_strategy_that_needs_no_fit_on_the_same_mean(run: CLI, untouched: Path):
    folder = run(f"run={untouched}", "var=beta", task="evaluate", tiny=False)
    assert results(folder)["var"] == "beta"


def test_the_default_folder_lies_in_the_run(run: CLI, copy: Path):
    before = contents(copy)
    run.raw(f"run={copy}", task="evaluate")
    run.raw("run=moved", "format=png", task="sample")
    assert len(list(copy.glob("evaluate/*/results.json"))) == 1
    assert len(list(copy.glob("sample/*/samples.png"))) == 1
    after = contents(copy)
    assert {name: after[name] for name in before} == before


def test_samples_as_one_file(run: CLI, untouched: Path):
    arguments = [f"run={untouched}", "sampler=ddim", "sampler.num_steps=4", "num_samples=9"]
    folder = run(*arguments, task="sample", tiny=False)
    assert files(folder) == {"samples.npz", "samples.png", "samples.json"}
    (images,) = np.load(folder / "samples.npz").values()
    assert images.dtype == np.uint8
    assert images.shape == (9, 8, 8, 1)  # NHWC, as the usual evaluation scripts read it
    assert images.min() < images.max()
    picture(torch.from_numpy(images).movedim(-1, 1), run.folder / "expected.png")
    assert (folder / "samples.png").read_bytes() == (run.folder / "expected.png").read_bytes()
    assert len({image.tobytes() for image in images}) == 9

    other = run(*arguments, "sample_batch_size=2", "hydra.run.dir=other", task="sample", tiny=False)
    (again,) = np.load(other / "samples.npz").values()
    assert np.array_equal(images, again)  # sample i depends on (seed, i) alone
    more = run(*arguments[:-1], "num_samples=12", "hydra.run.dir=more", task="sample", tiny=False)
    (longer,) = np.load(more / "samples.npz").values()
    assert np.array_equal(images, longer[:9])
    seeded = run(*arguments, "seed=1", "hydra.run.dir=seeded", task="sample", tiny=False)
    (different,) = np.load(seeded / "samples.npz").values()
    assert not np.array_equal(images, different)


def test_samples_as_pictures(run: CLI, untouched: Path):
    arguments = [f"run={untouched}", "num_samples=5"]
    folder = run(*arguments, "format=png", task="sample", tiny=False)
    assert files(folder) == {"samples.png", "samples.json", *(f"samples/{i:06d}.png" for i in range(5))}
    pictures = [np.asarray(Image.open(path)) for path in sorted((folder / "samples").iterdir())]
    (images,) = np.load(run(*arguments, "hydra.run.dir=npz", task="sample", tiny=False) / "samples.npz").values()
    assert np.array_equal(np.stack(pictures), images[..., 0])


def test_vectors_as_one_file_and_not_as_pictures(run: CLI):
    folder = run("experiment=oracle", "var=beta", "num_samples=20", tiny=False)
    drawn = run(f"run={folder}", "num_samples=20", task="sample", tiny=False)
    (vectors,) = np.load(drawn / "samples.npz").values()
    assert vectors.shape == (20, 2)
    sentence = run.refused(f"run={folder}", "format=png", "hydra.run.dir=png", task="sample", tiny=False)
    assert "format" in sentence
    assert "npz" in sentence
    assert files(run.folder / "png") == set()


@pytest.mark.parametrize("format_", ["jpg", "PNG", "3"])
def test_an_unknown_format_is_refused(run: CLI, untouched: Path, format_: str):
    sentence = run.refused(f"run={untouched}", f"format={format_}", task="sample", tiny=False)
    assert "format" in sentence
    assert format_ in sentence
    assert "npz" in sentence
    assert "png" in sentence
    assert files(run.folder) == set()


def one_sentence(sentence: str, *parts: str) -> None:
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, f"{part!r} is not in {sentence!r}"


@pytest.mark.parametrize("task", ["evaluate", "sample"])
def test_a_run_that_lost_its_variance(run: CLI, copy: Path, task: str):
    (copy / "checkpoints" / "variance.safetensors").unlink()
    before = contents(copy)
    sentence = run.refused(f"run={copy}", task=task, tiny=False)
    one_sentence(sentence, "variance.safetensors", "give")
    assert contents(copy) == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_run_that_lost_its_mean(run: CLI, copy: Path, damage: Callable[[Path], Any]):
    damage(copy / "checkpoints" / "mean.safetensors")
    one_sentence(run.refused(f"run={copy}", task="evaluate", tiny=False), "mean.safetensors", "give")
    assert files(run.folder) == {f"moved/{name}" for name in files(copy)}


def test_a_strategy_that_was_not_fitted_in_the_run(run: CLI, untouched: Path):
    for var in (["var=npr_dpm"], ["var=analytic"], ["head=complex"]):
        sentence = run.refused(f"run={untouched}", *var, task="evaluate", tiny=False)
        one_sentence(sentence, "var = ", str(untouched), "train.py", "mean_ckpt")
    assert files(run.folder) == set()


def test_the_remedy_of_that_refusal_works(run: CLI, untouched: Path, fits: None):
    """``train.py var=npr_dpm mean_ckpt=...`` with the run's own settings, and that run can be evaluated."""
    folder = run("var=npr_dpm", f"mean_ckpt={untouched}/checkpoints/mean.safetensors")
    evaluated = run(f"run={folder}", task="evaluate", tiny=False)
    assert results(evaluated)["metrics"] == results(folder)["metrics"]


def test_no_folder_of_a_run(run: CLI, untouched: Path):
    (run.folder / "file").write_text("mine")
    for path in ("nowhere", "file", "."):
        one_sentence(run.refused(f"run={path}", task="evaluate", tiny=False), f"run = {path}", "give")
    one_sentence(run.refused(task="evaluate", tiny=False), "run")
    assert files(run.folder) == {"file"}


def test_bad_values_are_refused_here_as_well(run: CLI, untouched: Path):
    one_sentence(
        run.refused(f"run={untouched}", "sampler.num_steps=51", task="sample", tiny=False),
        "sampler.num_steps",
        "51",
        "50",
    )
    one_sentence(run.refused(f"run={untouched}", "num_samples=none", task="sample", tiny=False), "num_samples", "none")
    assert files(run.folder) == set()


@pytest.mark.parametrize("task", ["evaluate", "sample"])
def test_a_run_is_not_overwritten_by_what_is_made_of_it(run: CLI, copy: Path, task: str):
    before = contents(copy)
    sentence = run.refused(f"run={copy}", f"hydra.run.dir={copy}", "num_samples=4", task=task, tiny=False)
    one_sentence(sentence, str(copy), "hydra.run.dir")
    assert contents(copy) == before


def test_an_output_dir_of_the_run_is_not_inherited(run: CLI, fits: None):
    """``output_dir`` and ``cache_dir`` say where a run is kept: an evaluation has a place of its own."""
    run("var=beta", "output_dir=kept")
    folder = run.folder / "kept"
    before = contents(folder)
    run(f"run={folder}", "num_samples=4", task="evaluate", tiny=False)
    assert contents(folder) == before
    assert list(results(run.folder / "evaluate")["metrics"]) == ["fd_pixel_4"]


def test_settings_of_the_run_are_kept_and_other_options_drop_them(run: CLI, fits: None):
    first = run("sampler=ddim", "sampler.eta=0.5", "var=beta_tilde", "seed=5", "hydra.run.dir=first")
    again = results(run(f"run={first}", "hydra.run.dir=again", task="evaluate", tiny=False))
    assert again["metrics"] == results(first)["metrics"]
    assert again["seed"] == 5
    other = results(run(f"run={first}", "sampler=ddpm", "hydra.run.dir=other", task="evaluate", tiny=False))
    assert other["sampler"] == "ddpm"
    assert "sampler.eta" not in other["overrides"]


def test_a_sweep_of_evaluations(run: CLI, untouched: Path):
    """One fitted run at several numbers of steps, on the command line of evaluate.py."""
    run.raw("-m", f"run={untouched}", "sampler.num_steps=2,3", "hydra.sweep.dir=sweep", task="evaluate")
    found = {results(path.parent)["num_steps"] for path in (run.folder / "sweep").glob("*/results.json")}
    assert found == {2, 3}


def test_a_checkpoint_that_is_given_takes_the_place_of_the_runs_own(run: CLI, untouched: Path, fits: None):
    other = run("var=beta", "seed=1", "hydra.run.dir=other") / "checkpoints" / "mean.safetensors"
    given = f"mean_ckpt={other}"
    expected = results(run("var=beta", given, "hydra.run.dir=expected"))["metrics"]
    found = results(run(f"run={untouched}", "var=beta", given, task="evaluate", tiny=False))["metrics"]
    assert found == expected
    own = results(run(f"run={untouched}", "var=beta", "hydra.run.dir=own", task="evaluate", tiny=False))["metrics"]
    assert own != expected
    sentence = run.refused(f"run={untouched}", given, "hydra.run.dir=none", task="evaluate", tiny=False)
    one_sentence(sentence, "variance.safetensors was fitted to another mean network")
    assert sentence.endswith("give one that goes with these settings, or leave mean_ckpt out")
    variance = Checkpoint.load(untouched / "checkpoints" / "variance.safetensors", "variance", "var_ckpt")
    Checkpoint("variance", variance.identity | {"var": {}}, variance.weights).save(run.folder / "variance")
    for beside in ((), ("var=npr_dpm",)):
        arguments = (f"run={untouched}", "var_ckpt=variance", "hydra.run.dir=none", *beside)
        sentence = run.refused(*arguments, task="evaluate", tiny=False)
        one_sentence(sentence, "var_ckpt = variance was fitted to other settings of var")
        assert sentence.endswith("or leave var_ckpt out"), sentence
    other.unlink()  # which the run that was given it has copied
    again = run("run=expected", "hydra.run.dir=again", task="evaluate", tiny=False)
    assert results(again)["metrics"] == expected


def test_settings_that_would_need_another_network_are_refused(run: CLI, untouched: Path):
    for given, named in {
        "data=cifar10": "data._target_ = optcov.data.DigitsData, not optcov.data.CIFAR10Data: leave data out",
        "data.batch_size=7": "data.batch_size = 64, not 7",
        "model.channels=16": "model.channels = 8, not 16",
        "schedule=linear": "schedule._target_",
        "conditional=true": "conditional = False, not True",
        "label_dropout=0.3": "label_dropout = 0.1, not 0.3",
        "parameterization=v": "parameterization._target_ = optcov.parameterization.Eps",
        "time_offset=-1": "time_offset = 0, not -1",
        "experiment=oracle": "leave experiment out",
    }.items():
        one_sentence(run.refused(f"run={untouched}", given, task="evaluate", tiny=False), f"run = {untouched}", named)
    assert files(run.folder) == set()
    for i, same in enumerate((["data=digits", "schedule.num_steps=50", "conditional=false"], ["seed=1"])):
        run(f"run={untouched}", *same, "num_samples=2", f"hydra.run.dir={i}", task="sample", tiny=False)


def test_data_may_lie_elsewhere(run: CLI, monkeypatch: pytest.MonkeyPatch, fits: None):
    """As on another machine: by key, and by environment."""
    (run.folder / "here" / "images").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        pixels = torch.randint(256, (8, 8), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(run.folder / "here" / "images" / f"{i}.png")
    monkeypatch.setenv("OPTCOV_DATA", str(run.folder / "here"))
    images = ["data=image_folder", "data.image_size=8", "data.channels=1", "data.batch_size=4"]
    folder = run(*images, "var=beta")
    (run.folder / "here").rename(run.folder / "there")
    one_sentence(run.refused("run=run", "hydra.run.dir=none", task="evaluate", tiny=False), "here")
    by_key = run(f"run={folder}", f"data.root={run.folder}/there/images", task="evaluate", tiny=False)
    monkeypatch.setenv("OPTCOV_DATA", str(run.folder / "there"))
    by_environment = run(f"run={folder}", "hydra.run.dir=again", task="evaluate", tiny=False)
    assert results(by_key)["metrics"] == results(by_environment)["metrics"] == results(folder)["metrics"]
