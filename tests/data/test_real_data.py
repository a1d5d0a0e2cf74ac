"""The real CIFAR-10 and CelebA files, where they are present, and a whole run on them."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optcov.cli.main import main
from optcov.data import CelebAData, CIFAR10Data


@pytest.fixture(scope="module")
def cifar10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> CIFAR10Data:
    return CIFAR10Data(str(shared_data / "cifar10"), str(tmp_path_factory.mktemp("cache")), limit=10_000)


def test_cifar10_has_its_counts_classes_and_published_statistics(cifar10: CIFAR10Data) -> None:
    """Of the test images, and of as many that are spread over the training images: decoding all takes ten seconds."""
    assert [len(cifar10.records(split)) for split in ("train", "test")] == [50_000, 10_000]
    assert cifar10.train.shape == cifar10.load("test").shape == (10_000, 3, 32, 32)
    assert cifar10.labels("test").bincount().tolist() == [1000] * 10
    levels = torch.arange(256, dtype=torch.float64) / 255
    published = {  # the training images' at 50,000, of which these 10,000 are off by 0.001 (one standard deviation)
        "train": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 4e-3),
        "test": ([0.4942, 0.4851, 0.4504], [0.2467, 0.2429, 0.2616], 6e-5),
    }
    for split, (means, stds, tolerance) in published.items():
        images = cifar10.load(split)
        counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()
        mean = (counts * levels).sum(1) / counts.sum(1)
        std = ((counts * levels**2).sum(1) / counts.sum(1) - mean**2).sqrt()
        torch.testing.assert_close(mean, torch.tensor(means).double(), rtol=0, atol=tolerance)
        torch.testing.assert_close(std, torch.tensor(stds).double(), rtol=0, atol=tolerance)


def test_the_reference_is_the_training_split(cifar10: CIFAR10Data) -> None:
    assert cifar10.reference().data_ptr() == cifar10.load("train").data_ptr()


def test_cifar10_images_are_those_of_their_labels(cifar10: CIFAR10Data) -> None:
    """Colours tell: skies and seas make aeroplanes and ships the bluest classes, deer and frogs the least blue."""
    labels, images = cifar10.labels("test"), cifar10.load("test").double()
    blueness = torch.stack([(images[labels == k, 2] - images[labels == k, 0]).mean() for k in range(10)])
    assert set(blueness.topk(2).indices.tolist()) == {0, 8}
    assert blueness[4] < 0
    assert blueness[6] < 0


def test_celeba_crops_are_those_cut_by_hand(shared_data: Path, tmp_path: Path) -> None:
    images = CelebAData(str(shared_data / "celeba"), str(tmp_path), limit=20).train
    assert images.shape == (20, 3, 64, 64)
    with zipfile.ZipFile(shared_data / "celeba" / "img_align_celeba_10k_half.zip") as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        assert len(names) == 10_000
        for image, name in zip(images, names[::500], strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(file.read(name))))
            assert pixels.shape == (109, 89, 3)
            assert np.array_equal(image, pixels[28:92, 12:76].transpose(2, 0, 1))


def test_a_whole_run_on_cifar10_ends_with_a_table(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train.py", "data=cifar10", f"data.root={shared_data / 'cifar10'}", "model=unet", "var=sn_dpm",
        "trainer.max_steps=2", "num_samples=4", "sampler.num_steps=2", "data.limit=64", "data.batch_size=4",
        "model.channels=8", "model.channel_mult=[1,1]", "model.middle_attention=false", "metric=fd_cifar",
        "trainer.accelerator=cpu", "logger=csv",
        f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    main("train")
    assert "cifar10" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["reference"] == {"fd_cifar_4": "cifar10 train (64)"}
    assert np.isfinite(results["metrics"]["fd_cifar_4"])
    assert (tmp_path / "run" / "samples.png").is_file()
