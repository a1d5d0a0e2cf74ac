"""Which metrics draw samples, and what a run keeps of its scores; through the command line, in this process."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from optcov.cli.main import main

ROOT = Path(__file__).parents[2]
TINY = ["experiment=oracle", "logger=csv", "var=beta", "data.num_train=50", "data.num_test=20", "num_samples=8"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> dict[str, Any]:
    arguments = [*TINY, f"hydra.run.dir={folder}", f"cache_dir={folder}/cache", *overrides]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    main("train", str(ROOT / "train.py"))
    return json.loads((folder / "results.json").read_text())


def test_no_samples_are_drawn_that_no_metric_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = run(monkeypatch, tmp_path, "metric=nll")
    assert list(results["metrics"]) == ["nll_test_20"]
    assert results["standard_errors"]["nll_test_20"] > 0
    assert not (tmp_path / "samples.png").exists()
    assert "num_samples" not in results
    details = json.loads((tmp_path / "nll_test_20.json").read_text())
    assert details["total"]["value"] == results["metrics"]["nll_test_20"]
    assert len(details["transitions"]) == results["nfe"] - 1


def test_both_kinds_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = run(monkeypatch, tmp_path, "metric=[fd_pixel,nll]", "metric.nll.split=train", "metric.nll.num_images=9")
    assert sorted(results["metrics"]) == ["fd_pixel_8", "nll_train_9"]
    assert results["num_samples"] == 8
    assert (tmp_path / "samples.png").is_file()


def test_more_images_than_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: metric\.nll\.num_images = 21 is more than the 20 images"):
        run(monkeypatch, tmp_path, "metric=nll", "metric.nll.num_images=21")
    assert not (tmp_path / ".hydra").exists()  # refused before the folder was taken


def test_trajectory_is_fitted_after_the_variance_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = ["var=analytic", "var.num_images=20", "schedule=cosine", "schedule.num_steps=30", "sampler.num_steps=4"]
    results = run(monkeypatch, tmp_path, "metric=nll", "trajectory=optimal", *settings)
    assert len(results["times"]) == results["nfe"] == 4
    assert (results["times"][0], results["times"][-1]) == (1 / 30, 1)
    even = [round(1 + 29 * i / 3) / 30 for i in range(4)]
    assert results["times"] != even


@pytest.mark.parametrize("trajectory", ["optimal", "optimal_nll"])
def test_too_many_steps_are_refused_before_a_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trajectory: str):
    with pytest.raises(SystemExit, match=r"error: sampler\.num_steps = 31 does not fit a schedule of 30 steps"):
        run(
            monkeypatch,
            tmp_path,
            f"trajectory={trajectory}",
            "schedule=cosine",
            "schedule.num_steps=30",
            "sampler.num_steps=31",
        )
    assert not (tmp_path / ".hydra").exists()


def test_a_split_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: metric\.nll\.split = 'tset' has the wrong type or range"):
        run(monkeypatch, tmp_path, "metric=nll", "metric.nll.split=tset")


def test_the_ode_needs_no_variance_and_no_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = run(monkeypatch, tmp_path, "metric=nll_ode", "metric.nll_ode.num_images=4")
    assert list(results["metrics"]) == ["nll_ode_test_4"]
