"""Checkpoints: fitted weights in a safetensors file, with everything that determined them and a checksum."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from optcov.files import write_atomically
from optcov.wording import first_line

Kind = Literal["mean", "variance", "classifier"]
Identity = dict[str, Any]

FORMAT = 2  # increase this when a code change alters the weights that a config leads to
DAMAGE = (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError)  # what a damaged file raises


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence with the reason and the remedy."""


def identity_key(identity: Identity) -> str:
    """A short hash of everything that determines a set of weights."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(weights: dict[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of weights, which identifies them and detects corruption."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """Weights, together with everything that determined them."""

    kind: Kind
    identity: Identity
    weights: dict[str, Tensor]

    @property
    def key(self) -> str:
        """The hash of the identity."""
        return identity_key(self.identity)

    def save(self, path: Path) -> None:
        """Write the file completely or not at all."""
        weights = {name: value.contiguous().cpu() for name, value in self.weights.items()}
        identity = json.dumps(self.identity, sort_keys=True)
        metadata = {"kind": self.kind, "identity": identity, "sha256": digest_of(weights)}
        path.parent.mkdir(parents=True, exist_ok=True)
        # its save_file makes a temporary file under another name, which would stay after SIGKILL, and of mode 600
        write_atomically(path, save(weights, metadata))

    @staticmethod
    def identity_of(path: Path) -> Identity:
        """Everything that determined the weights in a file, without reading the weights.

        Raises:
            CheckpointError: if it is not a checkpoint of optcov.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return dict(json.loads((file.metadata() or {})["identity"]))
        except DAMAGE as error:
            raise CheckpointError(f"{path} is damaged or not an optcov checkpoint: delete it") from error

    @classmethod
    def load(cls, path: Path, kind: Kind, key: str) -> Checkpoint:
        """Read a file.

        Args:
            path: the file.
            kind: the kind of weights that the file must hold.
            key: the configuration key that named the file, for messages.
        Raises:
            CheckpointError: if it is missing, truncated, not a checkpoint of optcov, or of another kind.
        """
        if not path.is_file():
            raise CheckpointError(f"{key} = {path} does not exist: give the {kind}.safetensors of a run's checkpoints")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                identity, found = dict(json.loads(metadata["identity"])), metadata["kind"]
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if digest_of(weights) != metadata["sha256"]:
                raise ValueError("its weights do not match their checksum")
        except DAMAGE as error:
            raise CheckpointError(
                f"{key} = {path} is damaged or not an optcov checkpoint ({first_line(error)}): "
                f"give the {kind}.safetensors of a run's checkpoints"
            ) from error
        if found != kind:
            raise CheckpointError(
                f"{key} = {path} must hold the {kind} of a model (got its {found}): give {kind}.safetensors"
            )
        return cls(kind, identity, weights)

    def load_into(self, module: nn.Module, name: str) -> Checkpoint:
        """Put the weights into a module.

        Args:
            module: the module.
            name: name of the checkpoint in the error message.
        Returns:
            The checkpoint itself.
        Raises:
            CheckpointError: if the weights belong to another network.
        """
        try:
            module.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"{name} holds the weights of another network: {str(error).splitlines()[-1].strip()}"
            ) from error
        return self
