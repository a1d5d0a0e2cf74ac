"""Writes Lightning's checkpoints as every other file of a run: beside their place, and renamed once complete."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from optcov.files import atomic_write
from optcov.wording import first_line


class CompleteFiles(TorchCheckpointIO):
    """Checkpoints that appear on disk complete or not at all.

    Lightning writes to the system's temporary folder first. Where that is another disk, the move from there copies the
    file, and a process that is killed meanwhile leaves half of a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(errno.EIO, f"it could not be written completely: {first_line(error)}", str(path)) from error
