"""A file from the first of several mirrors that delivers it whole; resumed, retried, checked before it is used."""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

log = logging.getLogger(__name__)

CHUNK = 2**18  # bytes
RETRIES = 3  # of a mirror, after failures that may pass
TIMEOUT = 30.0  # seconds without a byte


def download(mirrors: Sequence[str], target: Path, md5: str | None, pause: float = 1.0) -> None:
    """Get a file, unless it is there; processes that want it at once get it once.

    What has arrived is kept as ``NAME.part`` and continued by a retry, another mirror or a later call.

    Args:
        mirrors: addresses of the same file.
        target: where it goes; its folder is made.
        md5: of the whole file; None to trust its length.
        pause: seconds before the first retry, doubled for each further one.
    Raises:
        ValueError: naming each mirror and why it failed.
    """
    if not mirrors:
        raise ValueError("data.mirrors is empty: give addresses to download from, or set data.download=false")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _from_any(mirrors, target, md5, pause)
    except OSError as error:
        raise ValueError(
            f"data.root = {target.parent} can not be written ({error.strerror or error}): free space or set data.root"
        ) from error


def _from_any(mirrors: Sequence[str], target: Path, md5: str | None, pause: float) -> None:
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in mirrors:
        log.info("downloading %s", url)
        for attempt in range(1 + RETRIES):
            resumed = part.exists()
            try:
                _fetch(url, part)
                found = _md5(part)
                if md5 is None or found == md5:
                    part.replace(target)
                    return
                part.unlink()
                if not resumed:  # otherwise what lay there may have been of another file
                    failures.append(f"{url} (MD5 {found}, not {md5})")
                    break
            except _Refused as error:
                failures.append(f"{url} ({error})")
                break
            except _Interrupted as error:
                if attempt == RETRIES:
                    failures.append(f"{url} ({error}, {1 + RETRIES} times)")
                else:
                    log.warning("%s: %s; trying again", url, error)
                    time.sleep(pause * 2**attempt)
    raise ValueError(
        f"data.download: no mirror delivered {target.name}: {'; '.join(failures)}: "
        f"set data.mirrors, or put the file into {target.parent} yourself"
    )


class _Refused(Exception):
    """A mirror does not have the file."""


class _Interrupted(Exception):
    """The connection failed; it may work again."""


def _fetch(url: str, part: Path) -> None:
    """Append what is missing to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    ask = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "optcov"} | ask)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or what we have is longer than the file
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise _Interrupted("what had arrived before is not of this file") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"{error.code} {error.reason}") from error
        raise _Refused(f"{error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise _Interrupted(str(getattr(error, "reason", error))) from error
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=file.tell(), desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() != total:
                raise _Interrupted(f"the connection closed after {file.tell():,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
