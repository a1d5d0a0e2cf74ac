"""The classifier whose features ``fd_cifar`` compares: what its file says, and what it answers on real images."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from optcov.data import CIFAR10Data
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
    data = CIFAR10Data(str(shared_data / "cifar10"), str(tmp_path))
    images, labels = data.load("test")[:2000], data.labels("test")[:2000]
    right = load_cifar_classifier()(images.float() / 255).argmax(1) == labels
    with safe_open(str(WEIGHTS), framework="pt") as file:
        stated = float(file.metadata()["test_accuracy"])
    spread = (stated * (1 - stated) / len(images)) ** 0.5
    assert right.float().mean().item() == pytest.approx(stated, abs=4 * spread)
