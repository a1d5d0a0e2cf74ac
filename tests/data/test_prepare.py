"""The slow part ahead of the jobs: from the command line, by several processes, and its sentences."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optcov.cli.errors import ConfigError
from optcov.data.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for i, image in enumerate(np.random.default_rng(4).integers(0, 256, (400, 24, 24, 3), np.uint8)):
        Image.fromarray(image).save(root / f"{i}.png")
    return root


def settings(tmp_path: Path, root: Path) -> list[str]:
    return ["data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}", "data.image_size=16"]


def test_it_fills_the_cache_for_every_split_there_is(images: Path, tmp_path: Path) -> None:
    lines = prepare([*settings(tmp_path, images), "data.test_size=50"], CONF)
    assert [line.partition(" in ")[0] for line in lines[::2]] == ["train: 350 images", "test: 50 images"]
    assert lines[1].startswith("val: none")


def test_a_damaged_pixel_is_reported(images: Path, tmp_path: Path) -> None:
    prepare(settings(tmp_path, images), CONF)
    (path,) = (tmp_path / "cache").glob("*/images.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match=r"another checksum than its manifest: delete it"):
        prepare(settings(tmp_path, images), CONF)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.limit=many", r"data.limit = 'many' has the wrong type"),
        ("data.limit=-1", r"data.limit = -1 leaves no images"),
        ("data.root=nowhere", r"data.root = nowhere does not exist"),
        ("data.resample=nearest", r"data.resample = 'nearest' has the wrong type or range"),
    ],
)
def test_what_can_not_be_prepared_is_said_in_a_sentence(
    override: str, problem: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        prepare([*settings(tmp_path, images), override], CONF)
    assert "\n" not in str(error.value)


def test_data_that_are_not_files_have_nothing_to_prepare() -> None:
    assert prepare(["data=digits"], CONF) == ["DigitsData has nothing to prepare"]


def test_an_environment_variable_says_where_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTCOV_DATA", str(tmp_path / "sets"))
    for name in ("cifar10", "celeba", "celeba32"):
        with pytest.raises(ConfigError, match=rf"data.root = {tmp_path}/sets/{name.removesuffix('32')} holds no"):
            prepare([f"data={name}", f"data.cache_dir={tmp_path}/cache"], CONF)


def test_processes_at_once_decode_once_and_agree(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optcov.data.prepare", *settings(tmp_path, images)]
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
