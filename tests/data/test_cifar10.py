"""CIFAR-10 in every form: pixel for pixel, and what damaged or hostile files lead to."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from optcov.data import CIFAR10Data
from optcov.data.restricted_pickle import load_arrays

RNG = np.random.default_rng(0)
IMAGES = {split: RNG.integers(0, 256, (n, 3, 32, 32), np.uint8) for split, n in (("train", 25), ("test", 4))}
LABELS = {split: RNG.integers(0, 10, len(images)) for split, images in IMAGES.items()}


def batches(suffix: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Five training batches of five images and the test batch."""
    parts = {
        f"data_batch_{i + 1}{suffix}": (IMAGES["train"][5 * i : 5 * i + 5], LABELS["train"][5 * i : 5 * i + 5])
        for i in range(5)
    }
    return parts | {f"test_batch{suffix}": (IMAGES["test"], LABELS["test"])}


def write_python(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (images, labels) in batches().items():
        batch = {b"batch_label": name.encode(), b"data": images.reshape(-1, 3072), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": []}, protocol=2))
    return folder


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (images, labels) in batches(".bin").items():
        records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(-1, 3072)], 1)
        (folder / name).write_bytes(records.tobytes())
    return folder


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder: Path, encode: Callable[[np.ndarray], bytes] = png, column: str = "img") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"train-00000-of-00002": slice(0, 13), "train-00001-of-00002": slice(13, 25), "test-00000-of-00001": None}
    for name, part in shards.items():
        split = name.partition("-")[0]
        images, labels = (x[split][part] if part else x[split] for x in (IMAGES, LABELS))
        rows = [{"bytes": encode(image), "path": None} for image in images]
        pq.write_table(pa.table({column: rows, "label": labels}), folder / f"{name}.parquet")
    return folder


def archive(folder: Path, path: Path, extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in extra:
            tar.addfile(member, io.BytesIO(b"evil") if member.isfile() else None)
        tar.add(folder, folder.name)
    return path


def python_folder(tmp: Path) -> Path:
    write_python(tmp / "root")
    return tmp / "root"


def python_archive(tmp: Path) -> Path:
    (tmp / "root").mkdir()
    archive(write_python(tmp / "packed"), tmp / "root" / "cifar-10-python.tar.gz")
    return tmp / "root"


def binary_folder(tmp: Path) -> Path:
    write_binary(tmp / "root")
    return tmp / "root"


def binary_archive(tmp: Path) -> Path:
    (tmp / "root").mkdir()
    archive(write_binary(tmp / "packed"), tmp / "root" / "cifar-10-binary.tar.gz")
    return tmp / "root"


def hub_folder(tmp: Path) -> Path:
    write_parquet(tmp / "root" / "plain_text")
    return tmp / "root"


FORMS: dict[str, Callable[[Path], Path]] = {
    "python": python_folder,
    "python itself": lambda tmp: write_python(tmp),
    "python.tar.gz": python_archive,
    "python.tar.gz itself": lambda tmp: archive(write_python(tmp), tmp / "renamed.tgz"),
    "binary": binary_folder,
    "binary.tar.gz": binary_archive,
    "binary.tar.gz itself": lambda tmp: archive(write_binary(tmp), tmp / "cifar-10-binary.tar.gz"),
    "hub": hub_folder,
    "hub itself": lambda tmp: write_parquet(tmp / "parquet"),
    "hub, other column": lambda tmp: write_parquet(tmp / "data", column="image"),
}


def cifar10(root: Path, tmp_path: Path, **settings: Any) -> CIFAR10Data:
    return CIFAR10Data(str(root), str(tmp_path / "cache"), **settings)


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_gives_the_same_pixels_and_labels(form: str, tmp_path: Path) -> None:
    data = cifar10(FORMS[form](tmp_path), tmp_path)
    assert data.data_shape == (3, 32, 32)
    for split in ("train", "test"):
        assert np.array_equal(data.load(split), IMAGES[split])
        assert np.array_equal(data.labels(split), LABELS[split])


def test_the_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    folder = write_python(tmp_path)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (folder / "test_batch").read_bytes()
    assert np.array_equal(cifar10(tmp_path, tmp_path).load("test"), IMAGES["test"])


class Attack:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, Path.touch])
def test_a_batch_that_runs_code_is_refused_and_does_not_run(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {os.system: "touch pwned", exec: "open('pwned', 'w')", Path.touch: Path("pwned")}
    content = pickle.dumps({b"data": Attack(function, arguments[function]), b"labels": []}, protocol=2)
    folder = write_python(tmp_path)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_3 is not a CIFAR-10 batch \(it asks for .*"):
        cifar10(tmp_path, tmp_path).load("train")
    assert not (tmp_path / "pwned").exists()
    pickle.loads(content)  # the attack works on a reader that looks up everything
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle", pickle.dumps(np.zeros(4, object))[:-9]])
def test_damaged_pickles_are_value_errors(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever the reader says)
        load_arrays(content)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3072)), b"labels": [1]},
    ],
)
def test_a_pickle_of_something_else_is_refused_by_name(batch: Any, tmp_path: Path) -> None:
    (write_python(tmp_path) / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match=r"test_batch (is not a CIFAR-10 batch|has labels other than)"):
        cifar10(tmp_path, tmp_path).load("test")


def test_members_that_point_outside_are_never_unpacked(tmp_path: Path) -> None:
    outside, absolute, link = (tarfile.TarInfo(n) for n in ("../evil.txt", str(tmp_path / "evil2.txt"), "test_batch"))
    outside.size = absolute.size = 4
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    root = tmp_path / "inner" / "root"
    root.mkdir(parents=True)
    archive(write_python(tmp_path / "packed"), root / "cifar-10-python.tar.gz", (outside, absolute, link))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert np.array_equal(cifar10(root, tmp_path).load("test"), IMAGES["test"])
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.relative_to(tmp_path).parts} == before


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    root = python_archive(tmp_path)
    checksums = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz \(.* bytes\) .*MD5 is .*, not c58f.*download=true"):
        cifar10(root, tmp_path, checksums=checksums).load("train")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = python_archive(tmp_path) / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is truncated or not a tar archive"):
        cifar10(path, tmp_path).load("train")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is truncated or not a tar archive"):
        cifar10(path, tmp_path).load("train")


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    (write_python(tmp_path / "a") / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"data_batch_4 is missing"):
        cifar10(tmp_path / "a", tmp_path).load("train")
    path = write_binary(tmp_path / "b") / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2.bin is truncated \(15364 bytes"):
        cifar10(tmp_path / "b", tmp_path).load("train")
    (write_parquet(tmp_path / "c") / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"has 1 of 2 train shards"):
        cifar10(tmp_path / "c", tmp_path).load("train")
    path = write_parquet(tmp_path / "d") / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test-00000-of-00001.parquet is truncated or not parquet"):
        cifar10(tmp_path / "d", tmp_path).load("test")
    write_parquet(tmp_path / "e", column="picture")
    with pytest.raises(ValueError, match=r"columns img and label \(got picture, label\)"):
        cifar10(tmp_path / "e", tmp_path).load("test")


def test_a_corrupt_or_odd_image_in_a_table_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", lambda image: png(image)[:900])
    with pytest.raises(ValueError, match=r"row 0 of .*train-00000-of-00002.parquet cannot be decoded"):
        cifar10(tmp_path / "a", tmp_path).load("train")
    write_parquet(tmp_path / "b", lambda image: png(image[:, :16]))
    with pytest.raises(ValueError, match=r"row 0 of .*32 x 16"):
        cifar10(tmp_path / "b", tmp_path).load("test")


def test_a_missing_folder_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            ValueError, match=r"does not contain CIFAR-10 .*cifar-10-batches-py.*OPTCOV_DATA.*download=true"
        ) as e:
            cifar10(root, tmp_path).load("train")
        assert str(root) in str(e.value)
        assert "\n" not in str(e.value)


def test_validation_is_the_end_of_the_training_files(tmp_path: Path) -> None:
    data = cifar10(python_folder(tmp_path), tmp_path, val_size=4)
    assert np.array_equal(data.train, IMAGES["train"][:21])
    assert np.array_equal(data.load("val"), IMAGES["train"][21:])
    assert np.array_equal(data.labels("val"), LABELS["train"][21:])
    assert np.array_equal(data.load("test"), IMAGES["test"])
    assert torch.equal(data.reference(), data.train)
    for size, split, problem in ((25, "train", r"val_size .*\(got 25\)"), (0, "val", r"val_size .*\(got 0\)")):
        with pytest.raises(ValueError, match=problem):
            cifar10(tmp_path / "root", tmp_path, val_size=size).load(split)
    with pytest.raises(ValueError, match=r"data.val_size .*-1"):
        cifar10(tmp_path / "root", tmp_path, val_size=-1)


def test_limit_takes_evenly_spaced_images_of_each_split(tmp_path: Path) -> None:
    root = hub_folder(tmp_path)
    assert len(cifar10(root, tmp_path).train) == 25  # and an entry without a limit does not answer
    data = cifar10(root, tmp_path, limit=5)
    assert np.array_equal(data.train, IMAGES["train"][::5])
    assert np.array_equal(data.labels("train"), LABELS["train"][::5])
    assert len(data.load("test")) == 4
    with pytest.raises(ValueError, match=r"data.limit .*\(got 0\)"):
        cifar10(tmp_path / "root", tmp_path, limit=0)


def test_a_changed_file_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    root = python_folder(tmp_path)
    first = cifar10(root, tmp_path)
    assert first.train.shape == (25, 3, 32, 32)
    path = root / "cifar-10-batches-py" / "data_batch_1"
    images = IMAGES["train"][:5].copy()
    images[0, 0, 0, 0] ^= 1
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(batch | {b"data": images.reshape(-1, 3072)}, protocol=2))
    second = cifar10(root, tmp_path)
    assert first.train[0, 0, 0, 0] ^ 1 == second.train[0, 0, 0, 0]
    assert first.identity() != second.identity()
