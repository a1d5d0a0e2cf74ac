"""Files of a stranger: formats by a list, and no more memory than a file may declare."""

import io
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optcov.data import ImageFolderData
from optcov.data.records import CorruptImageError
from optcov.data.untrusted import MAX_BYTES, open_image, read_array, read_header, read_npz
from optcov.metric.reference import Statistics

ZEROS = 8 * 2**20  # stands for the gigabytes of a bomb


def header(shape: tuple[int, ...], descr: str = "|u1", order: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": order, "shape": shape})
    return file.getvalue()


def bomb(path: Path, name: str, content: bytes = b"", size: int = ZEROS, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, archive.open(name, "w") as file:
        file.write(content + bytes(size - len(content)))
    return path


@contextmanager
def little_memory() -> Iterator[None]:
    """What happens inside takes no more than a small share of the zeros."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ZEROS / 4
    finally:
        tracemalloc.stop()


def test_postscript_of_any_name_is_refused() -> None:
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", b""):
        with pytest.raises(CorruptImageError, match=r"1.png cannot be decoded \(it is not one of PNG, JPEG, .*\)$"):
            open_image(content, "1.png")
    targa = io.BytesIO()
    Image.new("RGB", (8, 8)).save(targa, "TGA")
    with pytest.raises(CorruptImageError, match="it is not one of"):
        open_image(targa.getvalue(), "1.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("lies", [False, True])
def test_zeros_in_a_zip_take_no_memory(
    method: int, lies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "images.zip", "1.png", method=method)
    monkeypatch.setattr("optcov.data.files.read_member.__defaults__", (ZEROS // 2,))
    if lies:  # both headers declare 1000 bytes
        path.write_bytes(path.read_bytes().replace(ZEROS.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with little_memory(), pytest.raises(ValueError, match=r"data.root: 1.png in .*images.zip cannot be read"):
        ImageFolderData(str(path), str(tmp_path / "cache"), image_size=8).load("train")


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with (tmp_path / "root" / "1.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=r"1.png cannot be read \(0.537 GB are more than the 0.537 GB that are read\)"):
        ImageFolderData(str(tmp_path / "root"), str(tmp_path / "cache"), image_size=8).load("train")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (header((10**12, 8)) + b"1234", "declares 8,000,000,000,000 bytes of data and has 4"),
        (header((2, 2)), "declares 4 bytes of data and has 0"),
        (header((2,), "|O") + bytes(16), "Python objects"),
        (header((-1, 2)) + bytes(2), "header is damaged"),
        (header((2**60, 0)), "header is damaged"),
        (b"\x93NUMPY\x01\x00" + (10).to_bytes(2, "little") + b"[" * 10, "header is damaged"),
        (b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"), "header of 2147483648 bytes"),
        (b"PK\x03\x04", "not an array of NumPy"),
        (b"", "not an array of NumPy"),
    ],
)
def test_an_array_that_declares_what_it_does_not_have_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_header(io.BytesIO(content), len(content))


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "|u1", "|b1", "<U3", "<c16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4).astype(dtype), order=order)
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    found = read_array(file, len(file.getvalue()))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_arrays_of_a_zip_take_no_more_than_the_limit(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.npz", "sigma.npy", header((ZEROS - 128,)))
    with little_memory(), pytest.raises(ValueError, match=r"0.00839 GB are more than the 0.001 GB"):
        read_npz(path, limit=10**6)
    np.savez(tmp_path / "good.npz", mu=np.ones(3), sigma=np.eye(3), more=np.zeros(9))
    found = read_npz(tmp_path / "good.npz", ("mu", "sigma"), limit=96)
    assert sorted(found) == ["mu", "sigma"]
    assert np.array_equal(found["sigma"], np.eye(3))
    with pytest.raises(ValueError, match="GB are more than"):
        read_npz(tmp_path / "good.npz", ("mu", "sigma"), limit=95)
    with pytest.raises(ValueError, match=r"reference = .*bomb.npz is damaged or .*\(8e\+03 GB are more than"):
        Statistics.read(lying(tmp_path / "bomb.npz"))
    with pytest.raises(ValueError, match=r"reference = .*bomb.npz is damaged .*declares 8,000,000,000,000 bytes"):
        Statistics.read(bomb(tmp_path / "bomb.npz", "sigma.npy", header((10**12,), "<f8")))


def lying(path: Path) -> Path:
    """An archive whose directory, too, declares 8 TB."""
    content = header((10**12,), "<f8")
    bomb(path, "sigma.npy", content, len(content))
    size = len(content) + 8 * 10**12
    with zipfile.ZipFile(path, "a") as archive:
        archive.infolist()[0].file_size = size
        archive._didModify = True  # type: ignore[attr-defined]
    return path
