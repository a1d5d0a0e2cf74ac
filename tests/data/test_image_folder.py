"""Any folder or zip archive of images: modes, crops, splits, and damaged or hostile files."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from optcov.data import ImageFolderData

RNG = np.random.default_rng(2)


def folder_data(root: Path, tmp_path: Path, **settings: Any) -> ImageFolderData:
    return ImageFolderData(str(root), str(tmp_path / "cache"), **{"image_size": 8} | settings)


def write(path: Path, image: Image.Image | np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def colours(count: int, height: int = 8, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, 3), np.uint8)


def first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2)


def test_a_folder_and_a_zip_give_its_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    images = colours(4)
    for name, image in zip(("a/2.png", "a/10.png", "b/1.BMP", "c.png"), images, strict=True):
        write(tmp_path / "root" / name, image)
    (tmp_path / "root" / "notes.txt").write_text("no image")
    (tmp_path / "root" / ".hidden.png").write_text("no image")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path in (tmp_path / "root").rglob("*"):
            file.write(path, path.relative_to(tmp_path / "root"))
        file.writestr("__MACOSX/a/._2.png", "no image")
    for root in ("root", "images.zip"):
        assert np.array_equal(folder_data(tmp_path / root, tmp_path).train, first(images[[1, 0, 2, 3]]))


def test_every_mode_becomes_what_is_asked_for(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (8, 8), np.uint8)
    root = tmp_path / "root"
    write(root / "1-grey.png", grey)
    write(root / "2-palette.png", Image.fromarray(grey).convert("P"))
    write(root / "3-rgb.webp", Image.fromarray(grey).convert("RGB"), lossless=True)
    write(root / "4-pnm.pgm", grey)
    write(root / "5-deep.png", grey.astype(np.uint16) * 256 + 77)
    write(root / "6-cmyk.tif", Image.fromarray(grey).convert("RGB").convert("CMYK"))
    for channels in (3, 1):
        images = folder_data(root, tmp_path, channels=channels).train
        assert images.shape == (6, channels, 8, 8)
        for image in images.numpy():
            assert abs(image.astype(int) - grey).max() <= 1
    write(tmp_path / "bits" / "1.png", Image.fromarray(grey > 127))
    assert set(np.unique(folder_data(tmp_path / "bits", tmp_path).train)) == {0, 255}


def test_deep_images_are_scaled_by_what_their_file_says(tmp_path: Path) -> None:
    """Each against Pillow's own view of the file, divided by black to white in floats."""
    deep = RNG.integers(0, 65_536, (8, 8), np.uint16)
    deep[0, :2] = 0, 65_535
    unit = RNG.random((8, 8), np.float32)
    root = tmp_path / "root"
    twelve = ImageFileDirectory_v2()
    twelve[340], twelve[341] = 0, 4095
    write(root / "1.png", deep)
    write(root / "2.tif", deep)
    write(root / "3.pgm", deep)
    write(root / "4.tif", unit)
    write(root / "5.tif", deep // 16, tiffinfo=twelve)
    images = folder_data(root, tmp_path, channels=1).train
    for image, name, white in zip(images, sorted(root.iterdir()), (65_535, 65_535, 65_535, 1, 4095), strict=True):
        with Image.open(name) as seen:
            assert seen.mode in ("I", "F", "I;16")
            expected = np.asarray(seen).astype(np.float64) * (255 / white)
        assert abs(image[0].numpy() - expected).max() <= 0.5001
    assert images[0].aminmax() == (0, 255)


def test_values_beyond_their_range_are_refused_and_a_stated_range_is_taken(tmp_path: Path) -> None:
    counts = RNG.integers(0, 256, (8, 8)).astype(np.float32)
    write(tmp_path / "root" / "1.tif", counts)
    with pytest.raises(ValueError, match=r"1.tif in .* outside of 0 to 1: say .* data.value_range=\[0,255\]"):
        folder_data(tmp_path / "root", tmp_path, skip_corrupt=True).load("train")
    assert np.array_equal(
        folder_data(tmp_path / "root", tmp_path, value_range=[0, 255], channels=1).train[0, 0], counts
    )
    counts[0, 0] = np.nan
    write(tmp_path / "root" / "1.tif", counts)
    with pytest.raises(ValueError, match=r"values from nan to nan"):
        folder_data(tmp_path / "root", tmp_path, value_range=[0, 255]).load("train")
    write(tmp_path / "wide" / "1.tif", counts[1:].astype(np.int32))
    with pytest.raises(ValueError, match=r"1.tif in .* has values from \d+ to \d+: say which are black and white"):
        folder_data(tmp_path / "wide", tmp_path).load("train")
    with pytest.raises(ValueError, match=r"data.value_range must be black and white \(got \[1, 0\]\)"):
        folder_data(tmp_path / "root", tmp_path, value_range=[1, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_what_is_transparent_shows_the_background(mode: str, tmp_path: Path) -> None:
    """Against the mixture of colour and background by alpha, as Pillow sees the file."""
    grey, alpha = (Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)) for _ in range(2))
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        options["transparency"] = int(np.asarray(image)[0, 0])
    elif mode in ("P", "L"):
        image = grey.convert(mode)
        options["transparency"] = int(np.asarray(image)[0, 0])
    else:
        image = Image.merge(mode, [grey] * (len(mode) - 1) + [alpha])
    write(tmp_path / "root" / "1.png", image, **options)
    found = folder_data(tmp_path / "root", tmp_path, background="#ff0040").train[0].numpy().astype(float)
    if mode == "I;16":
        shown, opacity = np.asarray(grey), np.asarray(image) != options["transparency"]
    else:
        with Image.open(tmp_path / "root" / "1.png") as seen:
            shown, _, _, opacity = np.asarray(seen.convert("RGBA")).transpose(2, 0, 1).astype(float)
            opacity = opacity / 255
    for channel, behind in zip(found, (255, 0, 64), strict=True):
        assert abs(channel - (shown * opacity + behind * (1 - opacity))).max() <= 1
    assert (found[0] > found[1]).any()
    with pytest.raises(ValueError, match=r"data.background must be a colour \(got nowhere\)"):
        folder_data(tmp_path / "root", tmp_path, background="nowhere")


def test_height_and_width_may_differ(tmp_path: Path) -> None:
    image = colours(1, 16, 30)
    write(tmp_path / "root" / "1.png", image[0])
    tall = folder_data(tmp_path / "root", tmp_path, image_size=[16, 8], resample="box").train
    assert np.array_equal(tall, first(image[:, :, 11:19]))
    wide = folder_data(tmp_path / "root", tmp_path, image_size=[4, 8], crop=[8, 16], resample="box")
    assert wide.data_shape == (3, 4, 8)
    means = image[0, 4:12, 7:23].reshape(4, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert abs(wide.train[0].numpy() - means).max() < 1.01
    for size in ([8], [8, 8, 8], [8, 0]):
        with pytest.raises(ValueError, match=r"data.image_size must be"):
            folder_data(tmp_path / "root", tmp_path, image_size=size)


def test_folders_are_classes_and_may_be_splits(tmp_path: Path) -> None:
    """In the order of their names, below a folder that wraps them all, and whatever is nested in them."""
    names = ["cat/1.png", "cat/more/2.png", "dog/1.png", "ant/1.png"]
    for i, name in enumerate(names):
        write(tmp_path / "plain" / "pets" / name, np.full((8, 8, 3), i, np.uint8))
        write(tmp_path / "split" / ("validation" if i == 0 else "train") / name, np.full((8, 8, 3), i, np.uint8))
    plain = folder_data(tmp_path / "plain", tmp_path)
    assert plain.classes == ["ant", "cat", "dog"]
    assert plain.num_classes == 3
    told = dict(zip(plain.train[:, 0, 0, 0].tolist(), plain.labels("train").tolist(), strict=True))
    assert told == {0: 1, 1: 1, 2: 2, 3: 0}
    split = folder_data(tmp_path / "split", tmp_path)
    assert split.classes == ["ant", "cat", "dog"]
    assert split.labels("train").tolist() == [0, 1, 2]
    assert split.load("val")[:, 0, 0, 0].tolist() == [0]
    assert split.labels("val").tolist() == [1]
    with pytest.raises(ValueError, match=r"data.val_size and data.test_size must be 0 .*\(got 1 and 0\)"):
        folder_data(tmp_path / "split", tmp_path, val_size=1).load("train")
    with pytest.raises(ValueError, match=r"no images for image_folder-test"):
        split.load("test")


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = colours(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    write(tmp_path / "root" / "1.png", image, exif=exif)
    assert np.array_equal(folder_data(tmp_path / "root", tmp_path).train[0], np.rot90(image, -1).transpose(2, 0, 1))


def test_the_crop_is_central_and_as_large_as_asked(tmp_path: Path) -> None:
    image = colours(1, 12, 20)
    write(tmp_path / "root" / "1.png", image[0])
    assert np.array_equal(folder_data(tmp_path / "root", tmp_path, image_size=12).train, first(image[:, :, 4:16]))
    assert np.array_equal(folder_data(tmp_path / "root", tmp_path, crop=8).train, first(image[:, 2:10, 6:14]))
    box = folder_data(tmp_path / "root", tmp_path, image_size=6, resample="box").train
    means = image[0, :, 4:16].reshape(6, 2, 6, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert abs(box[0].numpy() - means).max() < 1.01  # rounded on each axis
    with pytest.raises(ValueError, match=r"1.png in .* 20 x 12 pixels, .*data.crop = 13"):
        folder_data(tmp_path / "root", tmp_path, crop=13).load("train")
    for key in ("crop", "image_size"):
        with pytest.raises(ValueError, match=rf"data.{key} .*\(got 0\)"):
            folder_data(tmp_path / "root", tmp_path, **{key: 0})


def test_a_corrupt_image_among_many_is_named_and_skipped_only_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = colours(5)
    root = tmp_path / "root"
    for i, image in enumerate(images):
        write(root / f"{i}.png", image)
    path = root / "2.png"
    path.write_bytes(path.read_bytes()[:100])
    (root / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2.png in .*root cannot be decoded .*data.skip_corrupt=true") as error:
        folder_data(root, tmp_path).load("train")
    assert "\n" not in str(error.value)
    data = folder_data(root, tmp_path, skip_corrupt=True)
    assert np.array_equal(data.train, first(images[[0, 1, 3]]))
    assert "skipped: 2.png" in caplog.text
    assert len(data.stored("train").manifest["skipped"]) == 2
    with pytest.raises(ValueError, match=r"2.png"):  # what was made with some left out does not answer
        folder_data(root, tmp_path).load("train")


def test_only_corrupt_images_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"has no image that can be decoded: 1.png"):
        folder_data(tmp_path / "root", tmp_path, skip_corrupt=True).load("train")


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root" / "1.png", colours(1)[0])
    monkeypatch.setattr("optcov.data.untrusted.MAX_PIXELS", 16)
    with pytest.raises(ValueError, match=r"1.png in .* cannot be decoded \(8 x 8 pixels are more than the 16"):
        folder_data(tmp_path / "root", tmp_path).load("train")


def test_damaged_zips_are_refused_and_their_damaged_members_named(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    encoded = io.BytesIO()
    Image.fromarray(colours(1)[0]).save(encoded, "PNG")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("1.png", encoded.getvalue())
    whole = path.read_bytes()
    path.write_bytes(whole[:150])
    with pytest.raises(ValueError, match=r"images.zip is truncated or not a zip archive"):
        folder_data(path, tmp_path).load("train")
    place = whole.index(b"IDAT") + 10
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"1.png in .*images.zip cannot be read \(Bad CRC-32"):
        folder_data(path, tmp_path).load("train")


def test_a_zip_that_points_outside_is_read_and_never_unpacked(tmp_path: Path) -> None:
    image = colours(1)
    encoded = io.BytesIO()
    Image.fromarray(image[0]).save(encoded, "PNG")
    (tmp_path / "inner").mkdir()
    with zipfile.ZipFile(tmp_path / "inner" / "images.zip", "w") as file:
        file.writestr("../evil.png", encoded.getvalue())
        file.writestr(str(tmp_path / "evil2.png"), encoded.getvalue())
    assert np.array_equal(folder_data(tmp_path / "inner" / "images.zip", tmp_path).train, first(image[[0, 0]]))
    assert not list(tmp_path.rglob("evil*"))


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root = .*nowhere does not exist \(looked for .*nowhere\)"):
        folder_data(tmp_path / "nowhere", tmp_path).load("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images"):
        folder_data(tmp_path / "empty", tmp_path).load("train")


def test_what_is_held_out_is_fixed_disjoint_and_the_rest_is_for_training(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / "root" / f"{i:02d}.png", np.full((8, 8, 3), i, np.uint8))
    data = folder_data(tmp_path / "root", tmp_path, val_size=3, test_size=4)
    seen = [data.load(split)[:, 0, 0, 0].tolist() for split in ("train", "val", "test")]
    assert [len(part) for part in seen] == [13, 3, 4]
    assert sorted(i for part in seen for i in part) == list(range(20))
    assert seen[1] != [17, 18, 19]
    with pytest.raises(ValueError, match=r"data.val_size \+ data.test_size .*20 images.*\(got 16 \+ 4\)"):
        folder_data(tmp_path / "root", tmp_path, val_size=16, test_size=4).load("train")
    with pytest.raises(ValueError, match=r"has no images for image_folder-val"):
        folder_data(tmp_path / "root", tmp_path).load("val")


def test_folders_that_link_to_each_other_are_searched_once(tmp_path: Path) -> None:
    write(tmp_path / "root" / "a" / "1.png", colours(1)[0])
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    assert len(folder_data(tmp_path / "root", tmp_path).train) == 1


def test_two_folders_with_equal_settings_are_different_data(tmp_path: Path) -> None:
    for name, image in zip(("cats", "dogs"), colours(2), strict=True):
        write(tmp_path / name / "1.bmp", image)  # the same name and the same size
    cats, dogs = (folder_data(tmp_path / name, tmp_path) for name in ("cats", "dogs"))
    assert not np.array_equal(cats.train, dogs.train)
    assert cats.identity() != dogs.identity()
    (tmp_path / "cats").rename(tmp_path / "moved")
    assert folder_data(tmp_path / "moved", tmp_path).identity() == cats.identity()


def test_data_without_classes_say_so(tmp_path: Path) -> None:
    write(tmp_path / "root" / "1.png", colours(1)[0])
    with pytest.raises(ValueError, match=r"ImageFolderData has no classes"):
        folder_data(tmp_path / "root", tmp_path).labels("train")
