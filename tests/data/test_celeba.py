"""CelebA: the published crop against one computed by hand, the forms, the partition."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optcov.data import CelebAData
from optcov.data.celeba import official_split, published_box, read_partition

RNG = np.random.default_rng(1)
FACES = RNG.integers(0, 256, (6, 218, 178, 3), np.uint8)
NAMES = [f"{i:06d}.jpg" for i in (1, 2, 162_770, 162_771, 182_637, 182_638)]


def lossless(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")  # readers look at the bytes, not at the name
    return file.getvalue()


def write_folder(folder: Path, faces: np.ndarray = FACES, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True)
    for name, face in zip(names, faces, strict=False):
        (folder / name).write_bytes(lossless(face))
    return folder


def write_zip(path: Path, extra: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, face in zip(NAMES, FACES, strict=True):
            file.writestr(f"img_align_celeba/{name}", lossless(face))
        for name, text in (extra or {}).items():
            file.writestr(name, text)
    return path


def celeba(root: Path, tmp_path: Path, **settings: Any) -> CelebAData:
    return CelebAData(str(root), str(tmp_path / "cache"), **settings)


def halved(crop: np.ndarray) -> np.ndarray:
    """A triangle of half-width 2 around each output pixel's centre, normalised inside the crop, on each axis."""
    centres, pixels = 2 * np.arange(64) + 1, np.arange(128) + 0.5
    weights = np.clip(1 - abs(centres[:, None] - pixels) / 2, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("yi,xj,ijc->cyx", weights, weights, crop, optimize=True)


def test_the_crop_is_the_published_one_computed_by_hand(tmp_path: Path) -> None:
    assert published_box(178, 218) == (89 - 64, 121 - 64, 89 + 64, 121 + 64)
    images = celeba(write_folder(tmp_path / "img_align_celeba"), tmp_path).train
    assert images.shape == (3, 3, 64, 64)
    for image, face in zip(images, FACES, strict=False):
        expected = halved(face[57:185, 25:153].astype(float))
        assert abs(image.numpy() - expected).max() < 1.01  # Pillow rounds between the axes, to a grey level each


def test_half_size_images_are_cropped_at_half_the_place_and_not_resampled(tmp_path: Path) -> None:
    faces = RNG.integers(0, 256, (2, 109, 89, 3), np.uint8)
    images = celeba(write_folder(tmp_path / "img_align_celeba", faces), tmp_path).train
    assert np.array_equal(images, faces[:, 28:92, 12:76].transpose(0, 3, 1, 2))


def test_celeba32_is_half_of_that(tmp_path: Path) -> None:
    data = celeba(write_folder(tmp_path / "img_align_celeba"), tmp_path, image_size=32)
    assert data.data_shape == (3, 32, 32)


@pytest.mark.parametrize("form", ["folder", "folder itself", "zip", "zip itself", "torchvision", "kaggle"])
def test_every_form_gives_the_same_pixels(form: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if "zip" in form:
        path = write_zip(root / "img_align_celeba.zip")
    else:
        nested = {"torchvision": "celeba/img_align_celeba", "kaggle": "img_align_celeba/img_align_celeba"}
        path = write_folder(root / nested.get(form, "img_align_celeba"))
    images = celeba(path if "itself" in form else root, tmp_path).train
    assert [image[0, 0, 0] for image in images.numpy()] == [
        Image.fromarray(face).crop((25, 57, 153, 185)).resize((64, 64), Image.Resampling.BILINEAR).getpixel((0, 0))[0]
        for face in FACES[:3]
    ]


def test_without_a_partition_file_the_numbers_decide(tmp_path: Path) -> None:
    data = celeba(write_folder(tmp_path / "img_align_celeba"), tmp_path)
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [3, 2, 1]
    assert [official_split(f"{i:06d}.jpg") for i in (0, 1, 162_770, 162_771, 182_637, 182_638, 202_599, 202_600)] == [
        None, "train", "train", "val", "val", "test", "test", None,
    ]  # fmt: skip
    assert official_split("1.jpg") is None


@pytest.mark.parametrize("where", ["beside", "inside", "zip", "csv"])
def test_a_partition_file_decides_wherever_it_is(where: str, tmp_path: Path) -> None:
    lines = [f"{name} {part}" for name, part in zip(NAMES, (2, 0, 1, 0, 0, 0), strict=True)]
    if where == "zip":
        write_zip(tmp_path / "img_align_celeba.zip", {"list_eval_partition.txt": "\n".join(lines)})
    else:
        folder = write_folder(tmp_path / "img_align_celeba")
        place = folder if where == "inside" else tmp_path
        if where == "csv":
            text = "\n".join(["image_id,partition", *(line.replace(" ", ",") for line in lines)])
            (place / "list_eval_partition.csv").write_text(text)
        else:
            (place / "list_eval_partition.txt").write_text("\n".join(lines))
    data = celeba(tmp_path, tmp_path)
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [4, 1, 1]


def test_a_partition_of_something_else_is_refused_by_line() -> None:
    with pytest.raises(ValueError, match=r"line 2 of p.txt .*'000002.jpg 7'"):
        read_partition(b"000001.jpg 0\n000002.jpg 7\n", "p.txt")


def test_what_is_no_celeba_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root = .*\(looked in .*img_align_celeba\*.zip.*get img_align_celeba"):
        celeba(tmp_path / "nowhere", tmp_path).load("train")
    write_zip(tmp_path / "img_align_celeba.zip")
    write_zip(tmp_path / "img_align_celeba_again.zip")
    with pytest.raises(ValueError, match=r"data.root = .*img_align_celeba.zip and img_align_celeba_again.zip"):
        celeba(tmp_path, tmp_path).load("train")
    write_folder(tmp_path / "named" / "img_align_celeba", names=["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"data.root = .*2 images, none from the train split"):
        celeba(tmp_path / "named", tmp_path).load("train")
    square = RNG.integers(0, 256, (1, 178, 178, 3), np.uint8)
    write_folder(tmp_path / "square" / "img_align_celeba", square)
    with pytest.raises(ValueError, match=r"000001.jpg .*178 x 178.*data=image_folder"):
        celeba(tmp_path / "square", tmp_path).load("train")
