"""The cache of fitted weights, keyed by a hash of everything that determined them."""

from __future__ import annotations

import logging
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
from optcov.files import atomic_write
from optcov.lock import locked

log = logging.getLogger(__name__)

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
    """A cache entry: the finished file, a folder to resume from, a point that a longer fit goes on from, and a lock.

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
        self.before_cooldown = self.folder / "before_cooldown.ckpt"

    @contextmanager
    def lock(self, wait: bool = True) -> Iterator[None]:
        """Lock the entry for the process that fills it; its Lightning child processes do not wait for the lock.

        Args:
            wait: as in `locked`.
        """
        if not rank_zero():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", f"cache_dir = {self.folder}", wait):
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

    def go_on_from_a_shorter_fit(self) -> None:
        """Let a fit that has not begun resume from the longest finished one that differs only in having fewer steps.

        Both have the same learning rates up to the cooldown of the shorter one, and so the same weights.
        """
        resume = self.resume_folder / "resume.ckpt"
        shorter = {} if resume.exists() else self._shorter_fits()
        if not shorter:
            return
        steps, entry = max(shorter.items(), key=lambda found: (found[1].before_cooldown.is_file(), found[0]))
        if not entry.before_cooldown.is_file():
            log.info(
                "%s: starting anew, not from the fit of %s steps in the cache, whose learning rate fell from its first "
                "step on; with cooldown=0.2, a longer fit goes on",
                *(self.kind, f"{steps:,}"),
            )
            return
        log.info("%s: going on from the fit of %s steps in the cache, before its cooldown", self.kind, f"{steps:,}")
        self.resume_folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(resume) as partial:
            shutil.copyfile(entry.before_cooldown, partial)

    def _shorter_fits(self) -> dict[int, Entry]:
        """Finished fits that differ only in having fewer steps, by their number of steps."""
        most, own = _steps_and_rest(self.identity)
        found = {}
        for path in self.folder.parent.glob(f"*/{self.path.name}"):
            try:
                identity = Checkpoint.identity_of(path)
            except CheckpointError:
                continue
            steps, rest = _steps_and_rest(identity)
            if rest == own and steps < most:
                found[steps] = Entry(self.folder.parents[1], self.kind, identity)
        return found


def _steps_and_rest(identity: Identity) -> tuple[int, Identity]:
    trainer = dict(identity.get("trainer", {}))  # none in what an earlier version identified otherwise
    return trainer.pop("max_steps", 0), identity | {"trainer": trainer}
