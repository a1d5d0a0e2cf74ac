"""The slow part ahead of the jobs: from the command line, by several processes, and its sentences."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optcov.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for i, image in enumerate(np.random.default_rng(4).integers(0, 256, (400, 24, 24, 3), np.uint8)):
        Image.fromarray(image).save(root / f"{i}.png")
    return root


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """``optcov prepare`` in this process: the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["optcov", *arguments])
        main("prepare")
        return capsys.readouterr().out.splitlines()

    return run


def settings(tmp_path: Path, root: Path) -> list[str]:
    return ["data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}", "data.image_size=16"]


def test_it_fills_the_cache_for_every_split(images: Path, tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    lines = prepare(*settings(tmp_path, images), "data.test_size=50")
    assert [line.partition(" in ")[0] for line in lines[::2]] == ["train: 350 images", "test: 50 images"]
    assert lines[1].startswith("val: none")


def test_a_damaged_pixel_is_reported(images: Path, tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    prepare(*settings(tmp_path, images))
    (path,) = (tmp_path / "cache").glob("*/images.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match=r"does not match the checksum of its manifest: delete it"):
        prepare(*settings(tmp_path, images))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.limit=many", r"data.limit must be a valid integer \(got many\)"),
        ("data.limit=-1", r"data.limit = -1 leaves no images"),
        ("data.root=nowhere", r"data.root = nowhere does not exist"),
        ("data.resample=nearest", r"data.resample must be 'box', .* \(got nearest\)"),
    ],
)
def test_what_can_not_be_prepared_is_said_in_a_sentence(
    override: str, problem: str, images: Path, tmp_path: Path, prepare: Callable[..., list[str]]
) -> None:
    with pytest.raises(SystemExit, match=problem) as error:
        prepare(*settings(tmp_path, images), override)
    assert "\n" not in str(error.value.code)


def test_data_that_are_not_files_have_nothing_to_prepare(prepare: Callable[..., list[str]]) -> None:
    assert prepare("data=digits") == ["DigitsData has nothing to prepare"]


def test_an_environment_variable_says_where_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[..., list[str]]
) -> None:
    monkeypatch.setenv("OPTCOV_DATA", str(tmp_path / "sets"))
    for name in ("cifar10", "celeba", "celeba32"):
        with pytest.raises(SystemExit, match=rf"data.root = {tmp_path}/sets/{name.removesuffix('32')} holds no"):
            prepare(f"data={name}", f"data.cache_dir={tmp_path}/cache")


def test_processes_at_once_decode_once_and_agree(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optcov", "prepare", *settings(tmp_path, images)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("decoding 400 images" in errors for _, errors in outputs) == 1
    assert all(out.startswith("train: 400 images") for out, _ in outputs)
    entries = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 1
