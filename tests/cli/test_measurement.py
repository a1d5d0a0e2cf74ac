"""Measurements from the shell: `sample.py run=... guidance=measurement guidance.measurement=FILE`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CLI
from PIL import Image

from optcov.measurement import inpaint, read


@pytest.mark.filterwarnings("ignore:noise should be near")
def test_samples_agree_with_a_measured_image(run: CLI, trained: Path, tmp_path: Path) -> None:
    """Of a network that knows nothing: hidden pixels are free, those that are measured are kept."""
    y = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(y).save(tmp_path / "y.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    asked = [f"run={trained}", "guidance=measurement", "guidance.noise=0.01", "num_samples=4"]
    files = [f"guidance.measurement={tmp_path / 'y.png'}", f"guidance.operator.mask={tmp_path / 'mask.png'}"]
    folder = run(*asked, *files, task="sample", tiny=False)
    with np.load(folder / "samples.npz") as found:
        samples = found[found.files[0]].astype(int).reshape(4, 8, 8)
    off = np.abs(samples - y.astype(int))
    assert off[:, mask > 0].mean() < 5  # noise of 1.3 grey levels, and a head that trusts the network a little
    assert off[:, mask == 0].mean() > 20
    assert (samples[0] != samples[1]).any()
    for change, sentence in (
        (asked, "guidance.measurement must be a file (got none)"),
        ([*asked, "guidance.measurement=none.png"], "guidance.measurement must be a file (got none.png)"),
        ([*asked, files[0], "guidance.noise=0"], "noise must be above 0"),
        ([*asked[:1], "guidance=super_resolution", *files[:1]], "y must have shape (1, 4, 4)"),
    ):
        assert sentence in run.refused(*change, task="sample", tiny=False)


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
