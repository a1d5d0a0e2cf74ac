"""The slow part ahead of the jobs: for every split, by several processes, and its sentences."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optcov.data import DigitsData, ImageFolderData, prepare

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARE = "import logging, sys; logging.basicConfig(level='INFO'); from optcov.data import *; "


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for i, image in enumerate(np.random.default_rng(4).integers(0, 256, (400, 24, 24, 3), np.uint8)):
        Image.fromarray(image).save(root / f"{i}.png")
    return root


def source(root: Path, **settings: Any) -> ImageFolderData:
    return ImageFolderData(str(root), str(root.parent / "cache"), image_size=16, **settings)


def test_it_fills_the_cache_for_every_split_there_is(images: Path) -> None:
    lines = prepare(source(images, test_size=50))
    assert [line.partition(" in ")[0] for line in lines[::2]] == ["train: 350 images", "test: 50 images"]
    assert lines[1].startswith("val: none")


def test_a_damaged_pixel_is_reported_and_mended(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(source(images))
    (path,) = (images.parent / "cache").glob("*/images.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    prepare(source(images))
    assert "does not match its checksum" in caplog.text
    assert path.read_bytes() == whole


def test_without_a_training_split_there_is_nothing_to_go_on_with(images: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root = .*nowhere does not exist") as error:
        prepare(source(images.parent / "nowhere"))
    assert "\n" not in str(error.value)


def test_data_that_are_not_files_have_nothing_to_prepare() -> None:
    assert prepare(DigitsData()) == ["DigitsData has nothing to prepare"]


def test_processes_at_once_decode_once_and_agree(images: Path) -> None:
    arguments = f"{str(images)!r}, {str(images.parent / 'cache')!r}, image_size=16"
    command = [sys.executable, "-c", f"{PREPARE}print(*prepare(ImageFolderData({arguments})), sep='\\n')"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("decoding 400 images" in errors for _, errors in outputs) == 1
    assert all(out.startswith("train: 400 images") for out, _ in outputs)
    entries = [path for path in (images.parent / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 1
