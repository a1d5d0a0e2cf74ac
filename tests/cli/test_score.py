"""Which metrics draw samples, and what a run keeps of its scores; through the command line, in this process."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CLI, results
from PIL import Image
from safetensors.torch import load_file

from optcov.cli.main import main
from optcov.metric import inception

ROOT = Path(__file__).parents[2]
TINY = ["experiment=oracle", "logger=csv", "var=beta", "data.num_train=50", "data.num_test=20", "num_samples=8"]


def mixture(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> dict[str, Any]:
    arguments = [*TINY, f"hydra.run.dir={folder}", f"cache_dir={folder}/cache", *overrides]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    main("train")
    return json.loads((folder / "results.json").read_text())


def test_no_samples_are_drawn_that_no_metric_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = mixture(monkeypatch, tmp_path, "metric=nll")
    assert list(results["metrics"]) == ["nll_test_20"]
    assert results["standard_errors"]["nll_test_20"] > 0
    assert not (tmp_path / "samples.png").exists()
    assert "num_samples" not in results
    details = json.loads((tmp_path / "nll_test_20.json").read_text())
    assert details["total"]["value"] == results["metrics"]["nll_test_20"]
    assert len(details["transitions"]) == results["nfe"] - 1


def test_both_kinds_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = mixture(
        monkeypatch, tmp_path, "metric=[fd_pixel,nll]", "metric.nll.split=train", "metric.nll.num_images=9"
    )
    assert sorted(results["metrics"]) == ["fd_pixel_8", "nll_train_9"]
    assert results["num_samples"] == 8
    assert (tmp_path / "samples.png").is_file()


def test_both_kinds_of_bin_masses_have_scores_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = ["metric=[nll,nll_tanh]", "metric.nll_tanh.num_images=20"]
    scores = mixture(monkeypatch, tmp_path, *settings)["metrics"]
    assert list(scores) == ["nll_test_20", "nll_tanh_test_20"]
    assert scores["nll_test_20"] != scores["nll_tanh_test_20"]


def test_more_images_than_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: metric\.nll_tanh: num_images .*20.*\(got 21\)"):
        mixture(monkeypatch, tmp_path, "metric=nll_tanh", "metric.nll_tanh.num_images=21")
    assert not (tmp_path / ".hydra").exists()  # refused before the folder was taken


def test_trajectory_is_fitted_after_the_variance_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = ["var=analytic", "var.num_images=20", "schedule=cosine", "schedule.num_steps=30", "sampler.num_steps=4"]
    results = mixture(monkeypatch, tmp_path, "metric=nll", "trajectory=optimal", *settings)
    assert len(results["times"]) == results["nfe"] == 4
    assert (results["times"][0], results["times"][-1]) == (1 / 30, 1)
    even = [round(1 + 29 * i / 3) / 30 for i in range(4)]
    assert results["times"] != even


@pytest.mark.parametrize("trajectory", ["optimal", "optimal_nll"])
def test_too_many_steps_are_refused_before_a_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trajectory: str):
    with pytest.raises(
        SystemExit, match=r"error: sampler\.num_steps must lie in 1\.\.schedule\.num_steps = 30 \(got 31\)"
    ):
        mixture(
            monkeypatch,
            tmp_path,
            f"trajectory={trajectory}",
            "schedule=cosine",
            "schedule.num_steps=30",
            "sampler.num_steps=31",
        )
    assert not (tmp_path / ".hydra").exists()


def test_a_split_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: metric\.nll\.split must be 'train', 'val' or 'test' \(got tset\)"):
        mixture(monkeypatch, tmp_path, "metric=nll", "metric.nll.split=tset")


def test_the_ode_needs_no_variance_and_no_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = mixture(monkeypatch, tmp_path, "metric=nll_ode", "metric.nll_ode.num_images=4")
    assert list(results["metrics"]) == ["nll_ode_test_4"]


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / inception.FILE
    torch.manual_seed(0)
    torch.save(inception.InceptionV3().state_dict(), path)
    return path


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, random_weights: Path) -> Path:
    """Random weights that pass for the standard ones."""
    digest = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "SHA256", digest[:8])
    monkeypatch.setenv("OPTCOV_INCEPTION", str(random_weights))
    return random_weights


def test_every_metric_of_samples_in_one_run_and_the_reference_once(
    run: CLI, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    metrics = "metric=[fid,kid,inception_score,precision_recall,fd_cifar,fd_pixel]"
    few = ["data.limit=3", "num_samples=4"]
    small = ["metric.kid.subset_size=3", "metric.kid.subsets=3", "metric.inception_score.splits=2"]
    folder = run(metrics, *few, *small, "metric.precision_recall.k=1", *images(run.folder))
    found = results(folder)
    assert sorted(found["metrics"]) == [
        "fd_cifar_4", "fd_pixel_4", "fid_4", "inception_score_4", "kid_4", "precision_4", "recall_4"
    ]  # fmt: skip
    assert sorted(found["higher_is_better"]) == ["inception_score_4", "precision_4", "recall_4"]
    compared = set(found["metrics"]) - {"inception_score_4"}  # which looks at no reference
    assert found["reference"] == dict.fromkeys(compared, "image_folder train (3)")
    assert json.loads((folder / "kid_4.json").read_text())["subset_size"] == 3
    kept = sorted(path.name for path in (run.folder / "outputs" / "cache" / "reference").glob("*.npz"))
    assert [name.split("-")[0] for name in kept] == ["cifar", "inception", "inception"]
    # statistics of the run itself as a reference, and nothing is computed again
    statistics = run.folder / "outputs" / "cache" / "reference" / kept[2]
    assert "statistics" in statistics.name
    again = run("metric=fid", f"metric.fid.reference={statistics}", "hydra.run.dir=again", *few, *images(run.folder))
    assert results(again)["metrics"]["fid_4"] == pytest.approx(found["metrics"]["fid_4"], rel=1e-9)
    assert results(again)["reference"] == {"fid_4": str(statistics)}
    assert not [name for name in load_file(folder / "checkpoints" / "variance.safetensors") if "Mixed" in name]
    # sample.py scores nothing and needs no weights
    monkeypatch.setenv("OPTCOV_INCEPTION", "nowhere")
    assert (run(f"run={folder}", "num_samples=2", task="sample", tiny=False) / "samples.npz").is_file()


def images(folder: Path) -> list[str]:
    """Settings of a folder with eight colour pictures, made there."""
    target = folder / "pictures"
    if not target.exists():
        target.mkdir()
        pixels = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for i, each in enumerate(pixels):
            Image.fromarray(each.numpy()).save(target / f"{i}.png")
    return ["data=image_folder", f"data.root={target}", "data.image_size=8", "data.val_size=0", "data.test_size=0"]


@pytest.mark.parametrize("metric", ["fid", "precision_recall"])
def test_missing_weights_are_refused_before_training(run: CLI, metric: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(run.folder))
    monkeypatch.delenv("OPTCOV_INCEPTION", raising=False)
    said = run.refused(f"metric={metric}")
    for part in (f"metric.{metric}: features.weights = {run.folder}", inception.URL, "OPTCOV_INCEPTION"):
        assert part in said
    assert not (run.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metric=fd_cifar", "data=gaussian_mixture", "model=mlp"], ["fd_cifar", "data of shape (2,)", "fd_pixel"]),
        (["metric=fd_cifar", "metric.fd_cifar.reference=absent.npz"], ["metric.fd_cifar", "absent.npz is not a file"]),
        (
            ["metric=fd_cifar", "metric.fd_cifar.features.batch_size=0"],
            ["metric.fd_cifar.features.batch_size", "at least 1 (got 0)"],
        ),
        (["metric=kid"], ["metric.kid.subset_size", "samples, 8 (got 1000)"]),
        (
            ["metric=kid", "num_samples=1000", "callbacks=tracking", "callbacks.tracking.num_samples=500"],
            ["callbacks.tracking.num_samples = 500: metric.kid.subset_size", "samples, 500 (got 1000)"],
        ),
        (["metric=kid", "metric.kid.subsets=1"], ["metric.kid.subsets", "at least 2 (got 1)"]),
        (["metric=inception_score"], ["metric.inception_score.splits", "num_samples = 8 (got 10)"]),
        (["metric=precision_recall", "num_samples=3"], ["metric.precision_recall.k", "samples, 3 (got 3)"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("metric=") else "",
)
def test_what_can_not_be_scored_is_refused_before_training(
    run: CLI, weights: Path, arguments: list[str], words: list[str]
):
    said = run.refused(*arguments)
    assert all(word in said for word in words), said
    assert not (run.folder / "outputs").exists()
