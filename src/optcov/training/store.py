"""Fitted weights on disk: a safetensors file that says what determined it, and a cache that finds it again by hash."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optcov.files import atomic_write

Kind = Literal["mean", "variance", "classifier"]
Identity = dict[str, Any]

FORMAT = 2  # raise it when a change of code gives weights of the same config another meaning


class CheckpointError(ValueError):
    """A checkpoint can not be used; the message is one sentence that says why and what to do."""


def identity_key(identity: Identity) -> str:
    """A short hash of everything that determines a set of weights."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes: what changed on disk after it was written, and which weights are which."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rank_zero() -> bool:
    """Whether this process is the one that writes: the only one, or rank 0 of several."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what determined them."""

    kind: Kind
    identity: Identity
    weights: dict[str, Tensor]

    @property
    def key(self) -> str:
        """The hash of the identity."""
        return identity_key(self.identity)

    def save(self, path: Path) -> None:
        """Write the file at once or not at all."""
        weights = {name: value.contiguous().cpu() for name, value in self.weights.items()}
        identity = json.dumps(self.identity, sort_keys=True)
        metadata = {"kind": self.kind, "identity": identity, "sha256": digest_of(weights)}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as partial:
                save_file(weights, partial, metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.EIO, f"could not be written: {error}", str(path)) from error

    @classmethod
    def load(cls, path: Path, kind: Kind, key: str) -> Checkpoint:
        """Read a file.

        Args:
            path: the file.
            kind: what it must hold.
            key: the configuration key that named it, for messages.
        Raises:
            CheckpointError: if it is missing, truncated, no checkpoint of ours, or of another kind.
        """
        if not path.is_file():
            raise CheckpointError(f"{key} = {path} does not exist: give the {kind}.safetensors of a run's checkpoints")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                identity, found = dict(json.loads(metadata["identity"])), metadata["kind"]
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if digest_of(weights) != metadata["sha256"]:
                raise ValueError("the weights are not those that were saved")
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{key} = {path} is damaged or no optcov checkpoint ({str(error).splitlines()[0]}): "
                f"give the {kind}.safetensors of a run's checkpoints"
            ) from error
        if found != kind:
            raise CheckpointError(
                f"{key} = {path} holds the {found} of a model, not its {kind}: give {kind}.safetensors"
            )
        return cls(kind, identity, weights)


class Entry:
    """A place in the cache for one identity: the finished file, a folder to resume from, and a lock.

    Args:
        root: the cache.
        kind: what is kept.
        identity: what determines it.
    """

    def __init__(self, root: Path, kind: Kind, identity: Identity) -> None:
        self.kind, self.identity = kind, identity
        self.folder = root / kind / identity_key(identity)
        self.path = self.folder / f"{kind}.safetensors"
        self.resume_folder = self.folder / "resume"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one process that may fill the entry; its Lightning child processes pass, they belong to it."""
        if not rank_zero():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    def load(self) -> Checkpoint | None:
        """The finished checkpoint, or None where there is none that can be trusted."""
        if not self.path.is_file():
            return None
        try:
            checkpoint = Checkpoint.load(self.path, self.kind, "cache_dir")
        except CheckpointError:
            return None
        return checkpoint if checkpoint.identity == self.identity else None
