"""The slow part of a data set, ahead of the jobs that use it: find or download it, decode it into the cache, check it.

    python -m optcov.data.prepare data=celeba data.root=...

takes the overrides of ``train.py`` and runs where it runs; jobs with the same ``data`` settings open the cache at once.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from optcov.cli.errors import ConfigError, refusals
from optcov.cli.preflight import check_targets
from optcov.data.base import Split
from optcov.data.images import ImageData

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def prepare(overrides: Sequence[str], conf: Path) -> list[str]:
    """Fill the cache for every split that the data have.

    Args:
        overrides: as of ``train.py``; those outside ``data`` have no influence.
        conf: the folder of the config groups.
    Returns:
        A line for each split: where it is, how many images, how long it took.
    Raises:
        ConfigError: if the training split can not be had, or a cache has another checksum than its manifest.
    """
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("config", list(overrides))
    check_targets(cfg.data, "data")
    with refusals("data"):
        data = instantiate(cfg.data)
    if not isinstance(data, ImageData):
        return [f"{type(data).__name__} has nothing to prepare"]
    lines = []
    for split in SPLITS:
        started = time.monotonic()
        try:
            stored = data.stored(split)
        except ValueError as error:
            if split == "train":
                raise ConfigError(str(error)) from error
            lines.append(f"{split}: none ({error})")
            continue
        if not stored.is_intact():
            raise ConfigError(f"{stored.folder} has another checksum than its manifest: delete it and prepare again")
        seconds = time.monotonic() - started
        lines.append(f"{split}: {stored.manifest['count']} images in {stored.folder} ({seconds:.1f} s)")
    return lines


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for line in prepare(sys.argv[1:], Path(__file__).resolve().parents[3] / "conf"):
            print(line)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
