"""The console script ``optcov``: its first word is the task, the rest is what ``train.py`` and the others take."""

import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import CLI
from PIL import Image

from optcov.cli.main import command


@pytest.fixture
def optcov(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``optcov`` with these words, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTCOV_TASK", "")  # is set by the command; restored after the test

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["optcov", *words])
        command()

    return run


def test_data_are_prepared_ahead_of_runs(tmp_path: Path, optcov, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    optcov("prepare", "data=image_folder", "data.root=images", "data.image_size=8", "data.test_size=2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" in ")[0] for line in lines[::2]] == ["train: 4 images", "test: 2 images"]
    entries = {path.parent.parent for path in tmp_path.rglob("images.npy")}
    assert entries == {tmp_path / "outputs" / "cache" / "data"}  # where a run started in this folder looks


def test_every_task_shows_its_keys(optcov, run: CLI, capsys: pytest.CaptureFixture[str]):
    shown = {}
    for task in ("train", "sample", "evaluate"):
        optcov(task, "--cfg", "job")
        shown[task] = capsys.readouterr().out
        run.raw("--cfg", "job", task=task)
        assert capsys.readouterr().out == shown[task]
    assert len(set(shown.values())) == 3


def test_another_word_is_refused_with_the_tasks(optcov, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(
        SystemExit, match=r"error: tarin is not a task: optcov \{train,sample,evaluate,report,prepare\}"
    ):
        optcov("tarin", "var=beta")
    optcov()
    assert "usage: optcov {train,sample,evaluate,report,prepare}" in capsys.readouterr().out
