"""A whole run of train.py on a tiny network: what it leaves, and that it never takes another run's folder."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import CLI, TINY, UNET, composed, contents, results, weights
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

from optcov.cli import evaluate, fit, tasks
from optcov.training.store import Checkpoint

# DESIGN section 3, "A run's folder"
CONTRACT = {
    "metrics", "reference", "num_samples", "data", "model", "schedule", "var", "sampler", "trajectory", "num_steps",
    "nfe", "seed", "overrides", "throughput_images_per_s", "wall_time_s", "git_revision", "versions", "device",
    "output_dir",
}  # fmt: skip
LEFT = {
    "results.json", "metrics.csv", "samples.png", "variance.csv", "variance.png",
    "train.log", ".lock", ".hydra/config.yaml", ".hydra/overrides.yaml",
    "checkpoints/mean.safetensors", "checkpoints/variance.safetensors",
}  # fmt: skip


def test_a_run_leaves_these_files_and_no_others(trained):
    assert {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()} == LEFT
    cache = trained.parent / "outputs" / "cache"
    kept = sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock")
    assert kept == ["before_cooldown.ckpt", "mean.safetensors", "variance.safetensors"]
    assert {path.name for path in trained.parent.iterdir()} == {"run", "outputs"}


def test_results_hold_the_contract(trained):
    found = results(trained)
    assert found.keys() >= CONTRACT
    assert list(found["metrics"]) == ["fd_pixel_8"]  # the number of samples is in the name
    assert found["metrics"]["fd_pixel_8"] > 0
    assert found["reference"] == {"fd_pixel_8": "digits train (1500)"}
    assert [found[key] for key in ("var", "sampler", "trajectory", "model", "schedule")] == [
        "sn_dpm", "ddpm", "even", "unet", "cosine",
    ]  # fmt: skip
    assert (found["num_steps"], found["nfe"], found["seed"], found["num_samples"]) == (3, 3, 0, 8)
    assert found["throughput_images_per_s"] > 0
    assert set(found["wall_time_s"]) == {"mean", "variance", "sampling", "total"}
    assert found["wall_time_s"]["total"] >= found["wall_time_s"]["sampling"] > 0
    assert set(found["versions"]) >= {"torch", "lightning", "optcov", "python"}
    assert found["git_revision"] is None or len(found["git_revision"].removesuffix("-dirty")) >= 12
    assert found["output_dir"] == str(trained)


def test_a_composed_config_is_trained_by_a_call(tmp_path: Path):
    """Without a command line, and without Hydra's own job."""
    config = composed("var=beta", f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/run")
    HydraConfig.instance().cfg = None
    found = tasks.train(config)
    assert found["metrics"]["fd_pixel_8"] > 0
    assert found == results(tmp_path / "run")
    assert (found["var"], found["overrides"]["num_samples"]) == ("beta", "8")


def test_losses_of_both_stages_and_the_score_are_in_metrics_csv(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    for stage in ("mean/loss", "variance/loss"):
        logged = [(int(row["step"]), float(row[stage])) for row in rows if row[stage]]
        assert [step for step, _ in logged] == [0, 1]
        assert all(loss > 0 for _, loss in logged)
    scores = [float(row["fd_pixel_8"]) for row in rows if row["fd_pixel_8"]]
    assert scores == [results(trained)["metrics"]["fd_pixel_8"]]


def test_samples_png_shows_the_samples(trained):
    picture = Image.open(trained / "samples.png")
    picture.load()
    assert picture.mode == "L"
    assert min(picture.size) >= 2 * 8  # eight digits of 8 x 8, side by side
    assert len(picture.getcolors()) > 10


def test_variance_png_shows_the_curve(run: CLI, drawn_curves: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "plot_variance", drawn_curves)
    picture = Image.open(run("var=beta") / "variance.png").convert("RGB")
    assert min(picture.size) > 500
    assert (31, 119, 180) in {color for _, color in picture.getcolors(1 << 20)}  # a line in matplotlib's first color


def test_the_saved_config_is_resolved_and_the_checkpoints_know_what_made_them(trained):
    text = (trained / ".hydra" / "config.yaml").read_text()
    assert "${" not in text
    config = OmegaConf.to_container(OmegaConf.load(trained / ".hydra" / "config.yaml"))
    assert config["model"]["channels"] == 8
    assert config["var"]["head"]["_target_"] == "optcov.model.SimpleHead"
    assert config["output_dir"] == str(trained)
    assert "model.channels=8" in OmegaConf.load(trained / ".hydra" / "overrides.yaml")
    mean = Checkpoint.load(trained / "checkpoints" / "mean.safetensors", "mean", "mean_ckpt")
    variance = Checkpoint.load(trained / "checkpoints" / "variance.safetensors", "variance", "var_ckpt")
    assert mean.identity["model"] == config["model"]
    assert mean.identity["schedule"] == config["schedule"]
    assert variance.identity["mean"] == mean.key
    assert variance.identity["var"] == config["var"]


def test_the_run_says_its_stages_its_score_and_its_folder(run: CLI, capsys):
    folder = run("var=analytic", "var.num_images=4")
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert "fd_pixel_8" in said
    assert f"{results(folder)['metrics']['fd_pixel_8']:.4g}" in said
    assert shown.out.rstrip().endswith(str(folder))


def test_the_same_run_in_the_same_folder_is_not_done_twice(run: CLI, count_calls):
    run("var=sn_dpm")
    before = contents(run.folder)
    stages = count_calls(fit, "run_stage")
    run("var=sn_dpm")
    assert not stages
    assert contents(run.folder) == before


@pytest.mark.parametrize("other", ["var=npr_dpm", "sampler.num_steps=2", "seed=1", "sampler=ddim"])
def test_another_run_does_not_take_the_folder(run: CLI, trained, count_calls, other: str):
    before = contents(trained.parent)
    stages = count_calls(fit, "run_stage")
    sentence = run.refused("var=sn_dpm", other, f"hydra.run.dir={trained}")
    assert str(trained) in sentence
    assert "hydra.run.dir" in sentence
    assert "\n" not in sentence
    assert not stages
    assert contents(trained.parent) == before


def test_a_run_that_did_not_end_is_taken_up_in_its_folder(run: CLI):
    folder = run("var=sn_dpm")
    before = contents(folder)
    (folder / "results.json").unlink()
    (folder / "samples.png").write_bytes(b"half a pic")
    run("var=sn_dpm")
    after = contents(folder)
    assert after.keys() == before.keys()
    assert after["samples.png"] == before["samples.png"]


def test_two_runs_of_one_config_are_the_same(run: CLI):
    """Only what lies in the config decides: weights, statistics, samples and score, bit for bit."""
    folders = [
        run("var=npr_dpm", f"hydra.run.dir=run{i}", f"cache_dir=cache{i}", "head=complex", "seed=3") for i in (0, 1)
    ]
    for name in ("mean", "variance"):
        first, second = (weights(folder / "checkpoints" / f"{name}.safetensors") for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = ((folder / "samples.png").read_bytes() for folder in folders)
    assert first == second
    assert results(folders[0])["metrics"] == results(folders[1])["metrics"]


def test_the_default_folder_is_new_for_each_run(run: CLI):
    for _ in range(2):
        run.raw(*TINY, *UNET, "var=beta")
    folders = list((run.folder / "outputs" / "train").iterdir())
    assert len(folders) == 2
    assert all((folder / "results.json").is_file() for folder in folders)
