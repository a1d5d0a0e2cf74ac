"""A data set of Hugging Face's on disk: every layout gives the images that were saved; bad ones end in a sentence."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from optcov.data import HuggingFaceData

IMAGES = np.random.default_rng(5).integers(0, 256, (7, 8, 8, 3), np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0]
NAMES = ["ant", "bee", "cat"]
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def table(rows: slice, column: str = "image", **more: Any) -> pa.Table:
    """As ``datasets`` writes it: the images in a struct, the names of classes in the metadata of the schema."""
    images = [{"bytes": png(image), "path": None} for image in IMAGES[rows]]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {column: pa.array(images, kind), "label": pa.array(LABELS[rows], pa.int64())} | more
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def save_to_disk(folder: Path, *tables: pa.Table, **state: Any) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, each in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, each.schema) as writer:
            writer.write_table(each, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names]} | state
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def parquet(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=2)
    return path


def source(root: Path, **settings: Any) -> HuggingFaceData:
    return HuggingFaceData(str(root), str(root.parent / "cache"), **{"image_size": 8} | settings)


def splits(root: Path) -> None:
    save_to_disk(root / "train", table(slice(0, 2)), table(slice(2, 5)))
    save_to_disk(root / "validation", table(slice(5, 7)))
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')


def hub(root: Path) -> None:
    parquet(root / "data" / "train-00000-of-00002.parquet", table(slice(0, 2), "img"))
    parquet(root / "data" / "train-00001-of-00002.parquet", table(slice(2, 5), "img"))
    parquet(root / "data" / "validation-00000-of-00001.parquet", table(slice(5, 7), "img"))


@pytest.mark.parametrize("write", [splits, hub])
def test_data_with_splits_come_as_they_were_saved(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "root")
    data = source(tmp_path / "root")
    assert np.array_equal(data.train, IMAGES[:5].transpose(0, 3, 1, 2))
    assert np.array_equal(data.load("val"), IMAGES[5:].transpose(0, 3, 1, 2))
    assert (data.labels("train").tolist(), data.labels("val").tolist()) == (LABELS[:5], LABELS[5:])
    assert (data.classes, data.num_classes) == (NAMES, 3)
    with pytest.raises(ValueError, match="no images for huggingface-test"):
        data.load("test")


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_data_without_splits_are_held_out_of(kind: str, tmp_path: Path) -> None:
    if kind == "arrow":
        save_to_disk(tmp_path / "root", table(slice(0, 7)))
    else:
        parquet(tmp_path / "root" / "0000.parquet", table(slice(0, 7)))
    data = source(tmp_path / "root", test_size=2)
    assert (len(data.train), len(data.load("test"))) == (5, 2)
    seen = {image.tobytes() for split in ("train", "test") for image in data.load(split).numpy()}
    assert seen == {image.tobytes() for image in np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))}


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    masks = pa.array([png(image // 2) for image in IMAGES], pa.binary())
    save_to_disk(tmp_path / "root", table(slice(0, 7), mask=masks, kind=pa.array([1] * 7)))
    with pytest.raises(ValueError, match=r"must have one column of image files \(got image: .*\): give data.image="):
        source(tmp_path / "root").load("train")
    data = source(tmp_path / "root", image="mask", label="kind")
    assert np.array_equal(data.train, IMAGES.transpose(0, 3, 1, 2) // 2)
    assert data.labels("train").tolist() == [1] * 7
    for setting, problem in ({"image": "label"}, "image files in its column label"), ({"label": "x"}, "no column x"):
        with pytest.raises(ValueError, match=problem):
            source(tmp_path / "root", **{"image": "mask"} | setting).load("train")
    save_to_disk(tmp_path / "odd", table(slice(0, 2), "image").set_column(1, "label", pa.array(["a", "b"])))
    with pytest.raises(ValueError, match="has no classes"):
        source(tmp_path / "odd").labels("train")


def elsewhere(root: Path) -> None:
    rows = pa.array(
        [{"bytes": None, "path": "/etc/passwd"}] * 7, pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    save_to_disk(root, table(slice(0, 7)).set_column(0, "image", rows))


def outside(root: Path) -> None:
    save_to_disk(root.parent / "other", table(slice(0, 7)))
    save_to_disk(root, _data_files=[{"filename": "../other/data-00000-of-00001.arrow"}])


def truncated(root: Path) -> None:
    (path,) = save_to_disk(root, table(slice(0, 7))).glob("*.arrow")
    path.write_bytes(path.read_bytes()[:500])


def nested(root: Path) -> None:
    (save_to_disk(root, table(slice(0, 7))) / "state.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (elsewhere, r"row 0 of .*arrow names a file and does not hold it"),
        (outside, r"data.root: .*\.\./other/data-00000-of-00001.arrow is missing in"),
        (truncated, r"data.root: .*arrow is truncated or not arrow \("),
        (nested, r"data.root: .*state.json is damaged"),
        (lambda root: save_to_disk(root, table(slice(0, 7)), _indices_data_files=[{}]), r"a selection of rows: save"),
        (lambda root: save_to_disk(root), r"state.json lists no files"),
        (lambda root: root.mkdir(), r"root is not a data set of Hugging Face's: give the folder of"),
        (lambda root: None, r"root cannot be read \(No such file"),
        (
            lambda root: parquet(root / "train.parquet", table(slice(0, 7))).write_bytes(b"PAR1"),
            r"train.parquet is trunc",
        ),
    ],
)
def test_what_cannot_be_read_ends_in_a_sentence(write: Callable[[Path], Any], problem: str, tmp_path: Path) -> None:
    write(tmp_path / "root")
    with pytest.raises(ValueError, match=problem) as error:
        source(tmp_path / "root").load("train")
    assert "\n" not in str(error.value)


def test_a_part_of_a_table_is_bounded_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "root" / "train.parquet", table(slice(0, 7)))
    monkeypatch.setattr("optcov.data.tables.MAX_ARRAY", 100)
    with pytest.raises(ValueError, match=r"train.parquet is truncated or not parquet \(.* are more than the 1e-07 GB"):
        source(tmp_path / "root").load("train")
