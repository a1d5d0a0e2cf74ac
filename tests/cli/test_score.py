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
