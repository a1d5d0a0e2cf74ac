"""Measures training batches per second: optcov's data modules compared with loaders that decode in every epoch.

Every loader delivers the same: shuffled batches of 128 images, float32 on [-1, 1], ``[128, 3, H, W]``, half of them
mirrored.  The decoders are a plain ``Dataset`` of Pillow images and Hugging Face ``datasets`` (if installed), each in a
``DataLoader`` with 0 and with 2 worker processes; optcov has no workers.  The main process has one thread, so that work
is measured, and not the waiting of threads for each other on a busy machine.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Row, Settings
from optcov.data import CelebAData, CIFAR10Data, DataSource
from optcov.data.batches import RandomBatches
from optcov.data.celeba import published_box
from optcov.training.data import DataModule

BATCH = 128


def cifar10_images(root: Path, limit: int | None) -> list[bytes]:
    """Read the encoded training images, or the first ``limit`` of them."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    shards = sorted(root.glob("**/train-*.parquet"))
    return [row["bytes"] for shard in shards for row in pq.read_table(shard)["img"][:limit].to_pylist()][:limit]


def celeba_images(root: Path, limit: int | None) -> list[bytes]:
    """Read the encoded images, or the first ``limit`` of them."""
    with zipfile.ZipFile(next(root.glob("*.zip"))) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        return [file.read(name) for name in names[:limit]]


def plain(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def face(image: Image.Image) -> Image.Image:
    box = published_box(image.width, image.height)
    return image.convert("RGB").crop(box).resize((64, 64), Image.Resampling.BILINEAR)


def to_float(image: Image.Image) -> Tensor:
    """The last step of each decoder: mirror at random, and convert to float32 ``[3, H, W]`` on [-1, 1]."""
    if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class PillowDataset(Dataset[Tensor]):
    """Decodes an image each time it is requested."""

    def __init__(self, encoded: list[bytes], crop: Callable[[Image.Image], Image.Image]) -> None:
        self.encoded, self.crop = encoded, crop

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(self.crop(Image.open(io.BytesIO(self.encoded[index]))))


def hugging_face(encoded: list[bytes], crop: Callable[[Image.Image], Image.Image], folder: str) -> Any:
    """Put images in a memory-mapped Arrow file, decoded by a transform; None if ``datasets`` is not installed."""
    try:
        import datasets
    except ImportError:
        return None
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"image": [{"bytes": image, "path": None} for image in encoded]})
    rows.cast_column("image", datasets.Image()).save_to_disk(folder)
    return datasets.load_from_disk(folder).with_transform(
        lambda batch: {"image": [to_float(crop(image)) for image in batch["image"]]}
    )


def optcov_batches(data: DataSource) -> Iterator[Tensor]:
    """Yield the training batches: from the loader, through the hook that runs on the device."""
    module = DataModule(data)
    stream = RandomBatches(data.train, BATCH, 10**9, data.seed, random_flip=data.random_flip)
    for batch in stream:
        yield module.on_after_batch_transfer(batch, 0)


def decoding(dataset: Any, workers: int) -> Iterator[Any]:
    """Yield complete batches epoch after epoch, as optcov does."""
    loader: DataLoader[Any] = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def images_per_second(batches: Iterator[Any], seconds: float) -> float:
    """Images per second over at least one batch, after a first batch that starts the workers."""
    next(batches)
    count, started, passed = 0, time.perf_counter(), 0.0
    while not count or passed < seconds:
        batch = next(batches)
        count += len(batch["image"] if isinstance(batch, dict) else batch)
        passed = time.perf_counter() - started
    return count / passed


def compare(
    name: str,
    encoded: list[bytes],
    crop: Callable[[Image.Image], Image.Image],
    data: DataSource,
    settings: Settings,
) -> Iterator[Row]:
    """Compare loaders, which take turns of equal length."""
    seconds = settings.seconds / 30
    with tempfile.TemporaryDirectory() as folder:
        loaders: dict[str, Callable[[], Iterator[Any]]] = {"optcov": partial(optcov_batches, data)}
        decoders: dict[str, Any] = {"Pillow Dataset": PillowDataset(encoded, crop)}
        hub = hugging_face(encoded, crop, folder)
        if hub is not None:
            decoders["Hugging Face datasets"] = hub
        for decoder, dataset in decoders.items():
            for workers in (0, 2):
                loaders[f"{decoder}, {workers} workers"] = partial(decoding, dataset, workers)
        speeds: dict[str, list[float]] = {loader: [] for loader in loaders}
        for _ in range(min(3, settings.rounds)):
            for loader, make in loaders.items():
                speeds[loader].append(images_per_second(make(), seconds))
    for loader in list(loaders)[1:]:
        ratios = [a / b for a, b in zip(speeds["optcov"], speeds[loader], strict=True)]
        ours, theirs, ratio = (statistics.median(each) for each in (speeds["optcov"], speeds[loader], ratios))
        yield Row(
            f"data loading: {name}", loader, ours, theirs, "images/s", ratio, min(ratios), max(ratios),
            note="optcov decodes once, and keeps the pixels",
        )  # fmt: skip
    if hub is None:
        yield Row.left_out(f"data loading: {name}", "Hugging Face datasets is not installed: pip install datasets")


def data_loading(settings: Settings) -> Iterator[Row]:
    """Training batches of CIFAR-10 and CelebA below --data, compared with Pillow and Hugging Face datasets."""
    if settings.data is None:
        yield Row.left_out("data loading", "needs --data, a folder of cifar10 and celeba")
        return
    limit = 1000 if settings.quick else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        for name, folder, kind, read, crop in (
            ("CIFAR-10", "cifar10", CIFAR10Data, cifar10_images, plain),
            ("CelebA", "celeba", CelebAData, celeba_images, face),
        ):
            root = settings.data / folder
            if root.is_dir():
                yield from compare(name, read(root, limit), crop, kind(str(root), cache, limit=limit), settings)
            else:
                yield Row.left_out(f"data loading: {name}", f"--data has no folder {folder}")
    torch.set_num_threads(threads)
