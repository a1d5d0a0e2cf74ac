"""Times the metrics that need no download, on CIFAR-10's test images against its training images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.timing import Row, Settings, synchronize
from optcov.data import CIFAR10Data
from optcov.metric import CIFARFeatures, FrechetDistance, FrechetPixelDistance, Metric, Reference


def metrics(settings: Settings) -> Iterator[Row]:
    """fd_pixel and fd_cifar of CIFAR-10's test images below --data, and the statistics of its training images."""
    root = None if settings.data is None else settings.data / "cifar10"
    if root is None or not root.is_dir():
        yield Row.left_out("metrics", "needs --data, a folder of cifar10")
        return
    with tempfile.TemporaryDirectory() as cache:
        data = CIFAR10Data(str(root), cache, limit=1000 if settings.quick else None)
        test, reference = data.load("test"), Reference(data.train, Path(cache))
        yield once("hash of the training images", f"{len(data.train):,} images", lambda: reference.digest, settings)
        for metric in (FrechetPixelDistance(), FrechetDistance(CIFARFeatures())):
            metric.to(settings.device)

            def score(metric: Metric = metric) -> dict[str, object]:
                for batch in test.tensor_split(max(1, len(test) // 500)):
                    metric.update(batch)
                return {name: found.value for name, found in metric.compute().items()}

            def refer(metric: FrechetDistance = metric) -> None:
                metric.refer_to(reference)
                metric.prepare()

            yield once(
                f"{metric.name}: statistics of the training images", f"{len(data.train):,} images", refer, settings
            )
            yield once(metric.name, f"{len(test):,} samples", score, settings)


def once(name: str, setting: str, turn: Callable[[], object], settings: Settings) -> Row:
    """Measure a single turn, because its result is cached and a second turn would find it."""
    started = time.perf_counter()
    found = turn()
    synchronize(settings.device)
    row = Row(name, setting, time.perf_counter() - started, unit="s")
    if isinstance(found, dict):
        row.note = ", ".join(f"{key} = {value:.6g}" for key, value in found.items())
    return row
