"""Seconds of the metrics that need no download, test images of CIFAR-10 against the training images, on one thread.

python benchmarks/sample_metrics.py [folder of cifar10]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from optcov.data import CIFAR10Data
from optcov.metric import CIFARFeatures, FrechetDistance, FrechetPixelDistance, Reference


def timed(what: str, function: Callable[[], Any]) -> None:
    started = time.perf_counter()
    found = function()
    score = (
        "".join(f"   {name} = {score.value:.6g}" for name, score in found.items()) if isinstance(found, dict) else ""
    )
    print(f"{what}: {time.perf_counter() - started:.1f} s{score}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        data = CIFAR10Data(sys.argv[1] if len(sys.argv) > 1 else "data/cifar10", cache)
        test, reference = data.load("test"), Reference(data.train, Path(cache))
        timed("hash of 50,000 images", lambda: reference.digest)
        pixels, cifar = FrechetPixelDistance(), FrechetDistance(CIFARFeatures())
        pixels.refer_to(reference)
        pixels.update(test[:500])
        timed("fd_pixel of 500, without statistics", pixels.compute)
        timed("statistics of pixels", pixels.prepare)
        for count in (2000, 10_000):
            pixels.reset()
            timed(f"fd_pixel of {count}, summing", lambda n=count: [pixels.update(x) for x in test[:n].split(500)])
            timed(f"fd_pixel of {count}, distance", pixels.compute)
        timed("statistics of fd_cifar", lambda: cifar.refer_to(reference))
        timed("fd_cifar of 10000, features", lambda: [cifar.update(x) for x in test.split(500)])
        timed("fd_cifar of 10000, distance", cifar.compute)
