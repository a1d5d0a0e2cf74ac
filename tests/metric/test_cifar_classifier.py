"""The classifier whose features ``fd_cifar`` compares: what its file says, and what it answers on real images."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from optcov.data import CIFAR10Data
from optcov.metric import cifar_classifier
from optcov.metric import train_cifar_classifier as training
from optcov.metric.cifar_classifier import WEIGHTS, load_cifar_classifier


def test_the_file_is_small_and_states_its_accuracy() -> None:
    assert len(WEIGHTS.read_bytes()) < 3_000_000
    with safe_open(str(WEIGHTS), framework="pt") as file:
        assert float(file.metadata()["test_accuracy"]) >= 0.88


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    classifier = load_cifar_classifier()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([classifier.features(image[None]) for image in images])
    torch.testing.assert_close(classifier.features(images), alone, rtol=1e-4, atol=1e-5)
    assert alone.shape == (5, 192)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_it_classifies_real_test_images_as_well_as_its_file_says(shared_data: Path, tmp_path: Path) -> None:
    data = CIFAR10Data(str(shared_data / "cifar10"), str(tmp_path), limit=1000)
    images, labels = data.load("test"), data.labels("test")
    right = load_cifar_classifier()(images.float() / 255).argmax(1) == labels
    with safe_open(str(WEIGHTS), framework="pt") as file:
        stated = float(file.metadata()["test_accuracy"])
    spread = (stated * (1 - stated) / len(images)) ** 0.5
    assert right.float().mean().item() == pytest.approx(stated, abs=4 * spread)


def test_it_can_be_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of its metadata, on 16 images of two colours, writes a file that is read like the one enclosed."""

    class TwoColours:
        def __init__(self, root: str, cache: str) -> None:
            assert (root, cache) == ("data/cifar10", "outputs/cache/data")

        def load(self, split: str) -> torch.Tensor:
            return (200 * self.labels(split)).byte().view(16, 1, 1, 1).expand(16, 3, 32, 32)

        def labels(self, split: str) -> torch.Tensor:
            return torch.arange(16) % 2

    monkeypatch.setattr(training, "CIFAR10Data", TwoColours)
    monkeypatch.setattr(training, "BATCH_SIZE", 4)
    output = tmp_path / "classifier.safetensors"
    monkeypatch.setattr(sys, "argv", ["train", "--root", "data/cifar10", "--output", str(output), "--epochs", "3"])
    training.main()
    monkeypatch.setattr(cifar_classifier, "WEIGHTS", output)
    classifier = load_cifar_classifier()
    with safe_open(str(output), framework="pt") as file:
        metadata = file.metadata()
    right = classifier(TwoColours("data/cifar10", "outputs/cache/data").load("test").float() / 255).argmax(1)
    assert float(metadata["test_accuracy"]) == right.eq(torch.arange(16) % 2).double().mean()
    assert "--epochs 3" in metadata["command"]
    assert output.stat().st_size < 3_000_000  # in half precision
