"""Downloads a file with pooch from the first of several mirrors that delivers it complete, and checks it before use.

An interrupted download starts again from its first byte.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

RETRIES = 2  # per mirror
TIMEOUT = 30.0  # seconds without a byte


def download(mirrors: Sequence[str], target: Path, md5: str | None) -> None:
    """Download a file unless it exists; if several processes ask at once, one downloads and the others wait.

    Args:
        mirrors: addresses of the same file, tried in turn.
        target: the path to write; its folder is created.
        md5: MD5 of the file; None to check only the length that the server states.
    Raises:
        ValueError: if every mirror fails, with the reason for each, or if the folder cannot be written.
    """
    if not mirrors:
        raise ValueError("data.mirrors must not be empty: give addresses to download from, or set data.download=false")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _from_any(mirrors, target, md5)
    except OSError as error:
        raise ValueError(
            f"data.root = {target.parent} cannot be written ({error.strerror or error}): free space or set data.root"
        ) from error


def _from_any(mirrors: Sequence[str], target: Path, md5: str | None) -> None:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    failures = []
    for url in mirrors:
        log.info("downloading %s", url)
        registry = {target.name: None if md5 is None else f"md5:{md5}"}
        mirror = pooch.create(target.parent, "", registry=registry, urls={target.name: url}, retry_if_failed=RETRIES)
        try:
            mirror.fetch(target.name, downloader=downloader)
            return
        except (requests.RequestException, ValueError) as error:  # ValueError: the checksum differs
            failures.append(f"{url} ({error})")
    raise ValueError(
        f"data.download: no mirror delivered {target.name}: {'; '.join(failures)}: "
        f"set data.mirrors, or put the file into {target.parent} yourself"
    )
