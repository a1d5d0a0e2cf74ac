"""Measurements from the shell: `sample.py run=... guidance=measurement guidance.measurement=FILE`."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import CLI
from PIL import Image

from optcov.data_range import DataRange
from optcov.measurement import from_file, inpaint, read


@pytest.mark.filterwarnings("ignore:noise should be near")
def test_samples_agree_with_a_measured_image(run: CLI, trained: Path, tmp_path: Path) -> None:
    """Of a network that knows nothing: hidden pixels are free, those that are measured are kept."""
    y = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(y).save(tmp_path / "y.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    asked = [f"run={trained}", "guidance=measurement", "guidance.noise=0.002", "num_samples=4"]
    files = [f"guidance.measurement={tmp_path / 'y.png'}", f"guidance.operator.mask={tmp_path / 'mask.png'}"]
    folder = run(*asked, *files, task="sample", tiny=False)
    with np.load(folder / "samples.npz") as found:
        samples = found[found.files[0]].astype(int).reshape(4, 8, 8)
    off = np.abs(samples - y.astype(int))
    assert off[:, mask > 0].mean() < 5  # noise of 0.3 grey levels, and a head that trusts the network a little
    assert off[:, mask == 0].mean() > 20
    assert (samples[0] != samples[1]).any()
    for change, sentence in (
        (asked, "guidance.measurement must be a file (got none)"),
        ([*asked, "guidance.measurement=none.png"], "guidance.measurement must be a file (got none.png)"),
        ([*asked, files[0], "guidance.noise=0"], "noise must be above 0"),
        ([*asked[:1], "guidance=super_resolution", *files[:1]], "y.png must have shape (1, 4, 4)"),
    ):
        assert sentence in run.refused(*change, task="sample", tiny=False)


@pytest.mark.filterwarnings("ignore:noise should be near")
def test_each_file_of_a_folder_is_a_measurement(run: CLI, trained: Path, tmp_path: Path) -> None:
    """Its samples agree with it, whatever the batches, and its mean has its name."""
    place = tmp_path / "measured"
    place.mkdir()
    levels = {"dark": 40, "light, bright": 220}
    for name, level in levels.items():
        Image.new("L", (8, 8), level).save(place / f"{name}.png")
    np.save(place / "middle.npy", np.zeros((1, 8, 8), dtype=np.float32))
    (place / "notes.txt").write_text("not a measurement")
    asked = [f"run={trained}", "guidance=measurement", "guidance.noise=0.01", f"guidance.measurement={place}"]
    counts = ["guidance.count=3", "num_samples=9", "sample_batch_size=4"]
    folder = run(*asked, *counts, task="sample", tiny=False)
    with np.load(folder / "samples.npz") as found:
        upper = found[found.files[0]].reshape(3, 3, 8, 8)[:, :, :4].astype(float)  # which is what is measured
    assert np.abs(upper.mean((1, 2, 3)) - [40, 220, 127.5]).max() < 3
    assert {path.name for path in (folder / "restored").iterdir()} == {f"{name}.png" for name in [*levels, "middle"]}
    mean = np.asarray(Image.open(folder / "restored" / "light, bright.png"))
    assert mean.shape == (8, 8)
    assert abs(mean[:4].mean() - 220) < 3
    table = (folder / "measurements.csv").read_text().splitlines()
    assert table[0] == "sample,measurement"
    assert table[3:6] == ["2,dark.png", '3,"light, bright.png"', '4,"light, bright.png"']
    assert Image.open(folder / "restored.png").height == 3 * 9 * 7  # a line under each image, seven times as large
    sentence = run.refused(*asked, "num_samples=9", task="sample", tiny=False)
    assert "num_samples must be 48, for 3 measurements with guidance.count = 16 samples each (got 9)" in sentence


def test_a_folder_is_refused_by_the_name_of_a_file_that_does_not_fit(tmp_path: Path) -> None:
    denoiser = SimpleNamespace(data_shape=torch.Size((1, 1, 2)), data_range=DataRange())
    made = partial(from_file, denoiser, operator=inpaint, measurement=str(tmp_path))
    with pytest.raises(ValueError, match=r"must be a folder with images or .npy arrays \(got .*\): add some"):
        made()
    Image.new("L", (2, 1)).save(tmp_path / "a.png")
    assert made(count=2).of(range(2, 5)).y.shape == (3, 1)  # which go beyond the last sample, to fill a batch
    for content, message in (
        (np.zeros((3, 1)), r"y in .*b.npy must be one measurement \(got 3\): split the file"),
        (np.zeros(7), r"y in .*b.npy must have shape \(1,\) or \(1, 1, 2\), or one more axis .* \(got \(7,\)\)"),
        (np.array([np.nan]), r"y in .*b.npy must hold finite numbers"),
        (None, r"must be a .npy array of numbers \(got .*b.npy\): it is not an array"),
    ):
        np.save(tmp_path / "b.npy", content) if content is not None else (tmp_path / "b.npy").write_bytes(b"GIF8")
        with pytest.raises(ValueError, match=message):
            made()
    (tmp_path / "b.npy").unlink()
    (tmp_path / "c.png").write_bytes(b"%!PS")
    with pytest.raises(ValueError, match=r"c.png cannot be decoded \(it is not one of PNG"):
        made()
    (tmp_path / "c.png").unlink()
    with pytest.raises(ValueError, match=r"count must be at least 1 \(got 0\)"):
        made(count=0)


def test_files_of_numbers_and_masks(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.full((4, 4), 0.5))
    np.save(tmp_path / "mask.npy", np.eye(4, dtype=bool))
    np.save(tmp_path / "names.npy", np.array(["a"]))
    assert torch.equal(read(tmp_path / "half.npy", "y", (1, 4, 4)), torch.full((4, 4), 0.5))
    assert inpaint((2, 4, 4), str(tmp_path / "mask.npy")).measurement_shape == (8,)
    assert inpaint((2, 4, 4)).index.tolist() == [*range(8), *range(16, 24)]
    with pytest.raises(ValueError, match="mask must hold zeros and ones"):
        inpaint((2, 4, 4), str(tmp_path / "half.npy"))
    with pytest.raises(ValueError, match="y must be an array of real numbers"):
        read(tmp_path / "names.npy", "y", (1, 4, 4))
    Image.new("L", (4, 4)).save(tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"y must be a .npy file for data of shape \(3,\)"):
        read(tmp_path / "y.png", "y", (3,))
