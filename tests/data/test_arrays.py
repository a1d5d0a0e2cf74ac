"""Images in arrays: every format gives what was saved, as Pillow sees it; bad files end in a sentence."""

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optcov.data import ArrayData

RNG = np.random.default_rng(6)
COLOUR = RNG.integers(0, 256, (7, 4, 6, 3), np.uint8)  # HWC
GREY = COLOUR[..., 0].copy()
LABELS = np.array([0, 1, 2, 0, 1, 2, 3])


def source(root: Path, **settings: Any) -> ArrayData:
    return ArrayData(str(root), str(root.parent / "cache"), **settings)


def idx(array: np.ndarray) -> bytes:
    """By the description of the format on MNIST's page."""
    kind = {"uint8": 8, "int16": 0x0B, "float32": 0x0D}[array.dtype.name]
    return (
        struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pillow(image: np.ndarray) -> np.ndarray:
    """An image after a way through a PNG file and Pillow, ``[C, H, W]``."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    seen = np.asarray(Image.open(file))
    return seen[None] if seen.ndim == 2 else seen.transpose(2, 0, 1)


FORMS: dict[str, Callable[[np.ndarray], bytes]] = {
    "a.npy": npy,
    "a.npy.gz": lambda array: gzip.compress(npy(array)),
    "a-idx3-ubyte": idx,
    "a-idx3-ubyte.gz": lambda array: gzip.compress(idx(array)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "images", [GREY, COLOUR, COLOUR.transpose(0, 3, 1, 2).copy(), COLOUR[..., :1].copy()], ids=["HW", "HWC", "CHW", "1"]
)
def test_every_format_and_order_gives_what_pillow_sees(name: str, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMS[name](images))
    seen = GREY if 3 not in images.shape else COLOUR
    expected = np.stack([pillow(image) for image in seen])
    data = source(tmp_path / name, limit=3)
    assert np.array_equal(data.train, expected[[0, 2, 4]])
    assert data.data_shape == expected.shape[1:]


def test_mnist_is_a_folder_of_four_files(tmp_path: Path) -> None:
    root = tmp_path / "mnist"
    root.mkdir()
    for split, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(GREY[rows])))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(LABELS[rows].astype(np.uint8)))
    (root / "notes.txt").write_text("no array")
    data = source(root)
    assert np.array_equal(data.train[:, 0], GREY[:5])
    assert np.array_equal(data.load("test")[:, 0], GREY[5:])
    assert (data.labels("train").tolist(), data.labels("test").tolist()) == ([0, 1, 2, 0, 1], [2, 3])
    with pytest.raises(ValueError, match=r"has no val split: it has test, train"):
        data.load("val")
    with pytest.raises(ValueError, match=r"data.val_size and data.test_size must be 0 .*\(got 0 and 1\)"):
        source(root, test_size=1).load("train")


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
    ids=["keras", "medmnist"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_may_hold_its_splits(names: tuple[str, ...], save: Any, tmp_path: Path) -> None:
    arrays = (COLOUR[:5], LABELS[:5, None], COLOUR[5:], LABELS[5:, None])
    save(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)))
    data = source(tmp_path / "a.npz")
    assert np.array_equal(data.train, COLOUR[:5].transpose(0, 3, 1, 2))
    assert np.array_equal(data.load("test"), COLOUR[5:].transpose(0, 3, 1, 2))
    assert data.labels("test").tolist() == [2, 3]


def test_an_npz_without_splits_is_held_out_of_and_keeps_its_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", COLOUR, LABELS)
    data = source(tmp_path / "a.npz", test_size=2)
    assert (len(data.train), len(data.load("test"))) == (5, 2)
    for split in ("train", "test"):
        for image, label in zip(data.load(split).numpy(), data.labels(split), strict=True):
            (index,) = (i for i in range(7) if np.array_equal(image, COLOUR[i].transpose(2, 0, 1)))
            assert LABELS[index] == label
    np.savez(tmp_path / "b.npz", mine=COLOUR, also=GREY, kinds=LABELS)
    with pytest.raises(ValueError, match=r"b.npz has the arrays mine, also, kinds: give data.image=NAME"):
        source(tmp_path / "b.npz").load("train")
    with pytest.raises(ValueError, match=r"b.npz has no array x: it has mine, also, kinds"):
        source(tmp_path / "b.npz", image="mine", label="x").load("train")
    named = source(tmp_path / "b.npz", image="also", label="kinds")
    assert np.array_equal(named.train[:, 0], GREY)
    assert named.labels("train").tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match=r"data.label: also in .* must hold the class .*\(got uint8 of shape"):
        source(tmp_path / "b.npz", image="mine", label="also").load("train")
    (tmp_path / "b.npy").write_bytes(npy(COLOUR))
    (tmp_path / "b_labels.npy").write_bytes(npy(LABELS))
    assert source(tmp_path / "b.npy", label="b_labels.npy").labels("train").tolist() == LABELS.tolist()


def test_values_are_scaled_by_their_type_or_by_a_stated_range(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for i, (array, settings) in enumerate(
        [
            (levels.astype(np.uint16) * 257, {}),
            (levels.astype(np.float32) / 255, {}),
            (levels.astype(np.float64) / 127.5 - 1, {"value_range": [-1, 1]}),
            (levels.astype(np.int64), {"value_range": [0, 255]}),
            (levels, {}),
            (levels // 2, {"value_range": [0, 127]}),
        ]
    ):
        (tmp_path / f"{i}.npy").write_bytes(npy(array))
        found = source(tmp_path / f"{i}.npy", **settings).train[0, 0].numpy()
        assert np.array_equal(found // 2, levels[0] // 2)
        assert np.array_equal(found, levels[0]) or array.max() == 127
    (tmp_path / "b.npy").write_bytes(npy(levels > 127))
    assert np.array_equal(source(tmp_path / "b.npy").train[0, 0], np.where(levels[0] > 127, 255, 0))
    for name, array, problem in (
        ("f", levels / 127.5 - 1, r"row 0 of .*f.npy has values from -1 to 1, outside of 0 to 1: say which"),
        ("i", levels.astype(np.int32), r"row 0 of .*i.npy has values from 0 to 255: say which"),
        ("n", levels * np.nan, r"values from nan to nan"),
    ):
        (tmp_path / f"{name}.npy").write_bytes(npy(array))
        with pytest.raises(ValueError, match=problem):
            source(tmp_path / f"{name}.npy", skip_corrupt=True).load("train")


def test_the_order_of_axes_is_asked_for_where_it_shows_not(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 3, 5, 3), np.uint8)
    (tmp_path / "a.npy").write_bytes(npy(images))
    with pytest.raises(ValueError, match=r"\(got \[2, 3, 5, 3\]\): give data.axes=HWC or CHW"):
        source(tmp_path / "a.npy").load("train")
    assert np.array_equal(source(tmp_path / "a.npy", axes="CHW").train, images)
    assert np.array_equal(source(tmp_path / "a.npy", axes="HWC").train, images.transpose(0, 3, 1, 2))
    (tmp_path / "b.npy").write_bytes(npy(images[..., :2]))
    with pytest.raises(ValueError, match=r"\(got \[2, 3, 5, 2\]\): give images of 1 or 3 channels"):
        source(tmp_path / "b.npy", axes="HWC").load("train")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.npy", npy(COLOUR)[:300], "a.npy cannot be read .it declares 504 bytes of data and has 172"),
        ("a.npy.gz", gzip.compress(npy(COLOUR)[:300]), "a.npy.gz cannot be read .it ends in row 2 of 7"),
        ("a.npy.gz", gzip.compress(npy(COLOUR))[:300], "a.npy.gz cannot be read .Compressed file ended"),
        ("a.npy", npy(np.array([None])), "a.npy cannot be read .it holds Python objects"),
        ("a.npy", npy(np.array(3)), "a.npy cannot be read .it holds int64 of shape"),
        ("a.npy", npy(np.asfortranarray(COLOUR)), "a.npy cannot be read .its first axis varies fastest"),
        ("a.idx", idx(GREY)[:-1], "a.idx cannot be read .it declares 168 bytes of data and has 167"),
        ("a.idx", b"\0\0\x07\x03", "a.idx cannot be read .its header is damaged"),
        ("a.idx", b"\0\0\x08\x03" + b"\xff" * 12, "a.idx cannot be read .it declares 79,228,162,458,924,"),
        ("a.npz", b"PK", "a.npz cannot be read .File is not a zip file"),
        ("a.npy", npy(COLOUR[:0]), "has no images for arrays-train"),
    ],
)
def test_what_cannot_be_read_ends_in_a_sentence(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as error:
        source(tmp_path / name).load("train")
    assert "\n" not in str(error.value)


def test_a_place_without_arrays_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root = .*nowhere does not exist .*: give a .npy"):
        source(tmp_path / "nowhere").load("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data.root = .*empty has no arrays of images: give a .npy"):
        source(tmp_path / "empty").load("train")
