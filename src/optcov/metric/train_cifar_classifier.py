"""Train the CIFAR-10 classifier behind ``fd_cifar``: 15 epochs take a quarter of an hour on two cores and reach 90.9 %.

    python -m optcov.metric.train_cifar_classifier --root data/cifar10 --output cifar_classifier.safetensors

It trains on the 50,000 training images; the 10,000 test images are used only for the printed accuracy.  The accuracy in
the file's metadata is measured with the stored half-precision weights.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from optcov.data import CIFAR10Data
from optcov.data.batches import FlippedBatch, RandomBatches
from optcov.metric.cifar_classifier import CIFARClassifier

BATCH_SIZE = 256
PADDING = 4


def augment(batch: FlippedBatch) -> Tensor:
    """Mirror the marked uint8 images, pad all by reflection and crop them at random; return floats in [0, 1]."""
    images = F.pad(batch.flipped().float() / 255, (PADDING,) * 4, mode="reflect")
    size = images.shape[-1] - 2 * PADDING
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, 9, 9, 32, 32], a view
    rows, columns = torch.randint(2 * PADDING + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, rows, columns]


@torch.no_grad()
def accuracy(classifier: CIFARClassifier, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 images that the classifier, put in eval mode, labels correctly."""
    classifier.eval()
    right = [
        (classifier(chunk.float() / 255).argmax(1) == truth).sum()
        for chunk, truth in zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
    ]
    return float(sum(right)) / len(images)


def train(data: CIFAR10Data, epochs: int, learning_rate: float, seed: int) -> CIFARClassifier:
    """Train a classifier, printing a line per epoch."""
    torch.manual_seed(seed)
    classifier: CIFARClassifier = CIFARClassifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = data.load("train"), data.labels("train")
    test, truth = data.load("test"), data.labels("test")
    steps = epochs * len(images) // BATCH_SIZE
    optimizer = torch.optim.SGD(classifier.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate = OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.25, div_factor=10)
    indices = RandomBatches(torch.arange(len(images)), BATCH_SIZE, steps, seed)
    started = time.monotonic()
    for step, chosen in enumerate(indices, 1):
        assert isinstance(chosen, Tensor)
        classifier.train()
        batch = augment(FlippedBatch(images[chosen], torch.rand(len(chosen)) < 0.5))
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(batch.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        if step % (steps // epochs) == 0:
            scores = f"loss {loss:.3f}  test accuracy {accuracy(classifier, test, truth):.4f}"
            print(f"step {step}/{steps}  {scores}  {time.monotonic() - started:.0f} s", flush=True)
    return classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10, in any layout that data=cifar10 reads")
    parser.add_argument("--cache", default="outputs/cache/data", help="folder for decoded images")
    parser.add_argument("--output", type=Path, default=Path("cifar_classifier.safetensors"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = CIFAR10Data(arguments.root, arguments.cache)
    classifier = train(data, arguments.epochs, arguments.learning_rate, arguments.seed)
    kept = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in classifier.state_dict().items()
    }
    classifier.load_state_dict(kept)
    score = accuracy(classifier, data.load("test"), data.labels("test"))
    metadata = {
        "test_accuracy": f"{score:.4f}",
        "trained_on": "CIFAR-10 train, 50,000 images",
        "command": f"python -m optcov.metric.train_cifar_classifier --epochs {arguments.epochs} "
        f"--learning-rate {arguments.learning_rate} --seed {arguments.seed}",
        "versions": f"torch {torch.__version__}, python {platform.python_version()}",
    }
    save_file(kept, arguments.output, metadata)
    print(f"{arguments.output}: test accuracy {score:.4f}, {arguments.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
