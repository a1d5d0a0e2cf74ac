"""The cache of fitted weights, keyed by a hash of everything that determined them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from optcov.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    Identity,
    Kind,
    digest_of,
    identity_key,
)
from optcov.lock import locked

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "Identity",
    "Kind",
    "digest_of",
    "identity_key",
    "rank_zero",
]


def rank_zero() -> bool:
    """Whether this process writes files, as the only process or as rank 0 of several."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class Entry:
    """A cache entry: the finished file, a folder to resume from, and a lock.

    Args:
        root: root folder of the cache.
        kind: kind of weights.
        identity: everything that determines the weights.
    """

    def __init__(self, root: Path, kind: Kind, identity: Identity) -> None:
        self.kind, self.identity = kind, identity
        self.folder = root / kind / identity_key(identity)
        self.path = self.folder / f"{kind}.safetensors"
        self.resume_folder = self.folder / "resume"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the entry for the process that fills it; its Lightning child processes do not wait for the lock."""
        if not rank_zero():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", f"cache_dir = {self.folder}"):
            yield

    def load(self) -> Checkpoint | None:
        """Load the finished checkpoint; None if it is missing, damaged or has another identity."""
        if self.path.is_dir():  # where a file belongs
            shutil.rmtree(self.path)
        if not self.path.is_file():
            return None
        try:
            checkpoint = Checkpoint.load(self.path, self.kind, "cache_dir")
        except CheckpointError:
            return None
        return checkpoint if checkpoint.identity == self.identity else None
