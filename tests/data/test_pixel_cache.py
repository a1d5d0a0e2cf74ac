"""The cache of decoded images: whole or absent, and opened without decoding."""

import json
import logging
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from optcov.data.cache import FORMAT, PixelCache, StoredImages
from optcov.data.records import ArrayRecords, Records, evenly_spaced

SHAPE = (3, 16, 16)
IMAGES = np.random.default_rng(3).integers(0, 256, (300, *SHAPE), np.uint8)
LABELS = np.arange(300) % 10


def build(folder: Path, count: int = 300, opened: list[int] | None = None) -> StoredImages:
    def records() -> Records:
        if opened is not None:
            opened.append(1)
        return ArrayRecords(IMAGES[:count], LABELS[:count])

    return PixelCache(folder).open_or_build("noise", {"count": count}, "memory", records, SHAPE)


def test_what_is_kept_is_what_was_given(tmp_path: Path) -> None:
    opened: list[int] = []
    for _ in range(2):
        stored = build(tmp_path, opened=opened)
        assert np.array_equal(stored.images, IMAGES)
        assert np.array_equal(stored.labels, LABELS)
        assert stored.is_intact()
    assert opened == [1]
    manifest = json.loads((stored.folder / "manifest.json").read_text())
    assert manifest["origin"] == "memory"
    assert manifest["count"] == 300
    assert manifest["identity"] == {"format": FORMAT, "count": 300}
    assert np.array_equal(np.load(stored.folder / "images.npy"), IMAGES)  # any numpy reads it


def test_another_identity_is_another_entry(tmp_path: Path) -> None:
    assert build(tmp_path, 300).folder != build(tmp_path, 17).folder
    assert len(build(tmp_path, 17).images) == 17


def test_a_process_can_not_change_what_others_read(tmp_path: Path) -> None:
    build(tmp_path).images.zero_()
    assert build(tmp_path).is_intact()


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [0, 40, "flip", "folder", "nested"])
def test_a_damaged_entry_is_made_again_and_said_so_once(
    file: str, damage: int | str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build(tmp_path).folder / file
    content = bytearray(path.read_bytes())
    if isinstance(damage, int):
        path.write_bytes(content[:damage])
    elif damage == "flip":
        place = content.index(b'"sha256": "') + 12 if file == "manifest.json" else -1
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
        path.mkdir() if damage == "folder" else path.write_text("[" * 100_000)
    opened: list[int] = []
    stored = build(tmp_path, opened=opened)
    assert np.array_equal(stored.images, IMAGES)
    assert np.array_equal(stored.labels, LABELS)
    assert opened == [1]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(stored.folder) in said
    assert said.endswith("making it again")
    assert "\n" not in said


def test_a_file_in_the_place_of_an_entry_is_replaced(tmp_path: Path) -> None:
    folder = build(tmp_path).folder
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    assert np.array_equal(build(tmp_path).images, IMAGES)


def test_checksums_are_computed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr("optcov.data.cache._digest", lambda values: pytest.fail("read again"))
    build(tmp_path)


def test_an_entry_with_fewer_images_than_its_manifest_is_decoded_again(tmp_path: Path) -> None:
    np.save(build(tmp_path).folder / "images.npy", IMAGES[:200])
    assert np.array_equal(build(tmp_path).images, IMAGES)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the write that passes this fails, as on a full disk
    try:
        with pytest.raises(ValueError, match=r"data.cache_dir = .* cannot be written .*free space") as error:
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert np.array_equal(build(tmp_path).images, IMAGES)


def test_too_little_space_is_said_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"data.cache_dir must have 0.00 GB free"):
        build(tmp_path)


def test_what_a_killed_process_left_is_never_used(tmp_path: Path) -> None:
    entry = PixelCache(tmp_path).entry("noise", {"count": 300})
    partial = tmp_path / f".{entry.name}.partial"
    partial.mkdir()
    (partial / "images.npy").write_bytes(b"half")
    assert np.array_equal(build(tmp_path).images, IMAGES)
    assert not partial.exists()


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data.cache_dir = .*file cannot be written"):
        build(tmp_path / "file")


def test_many_at_once_decode_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    opened: list[int] = []
    results: list[StoredImages] = []
    threads = [threading.Thread(target=lambda: results.append(build(tmp_path, opened=opened))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [1]
    assert len(results) == 6
    assert all(stored.is_intact() for stored in results)


def test_a_limit_is_spread_over_all() -> None:
    assert list(evenly_spaced(10, None)) == list(evenly_spaced(10, 12)) == list(range(10))
    assert list(evenly_spaced(10, 4)) == [0, 2, 5, 7]
