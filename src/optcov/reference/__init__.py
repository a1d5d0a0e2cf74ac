"""The networks that come with the package, by name: each is the folder of a run, whose weights are stored in 16 bits.

``mean_ckpt=reference/cifar10`` on a command line and ``optcov.pretrained("cifar10_small")`` in a notebook name the same
file.  This module imports nothing slow.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "reference/"
EXPERIMENTS = {"cifar10": "cifar10_small"}  # the folder beside this file, and the experiment that trained its networks


def folder_of(name: str) -> Path:
    """The folder of a network that comes with the package.

    Args:
        name: of the folder, such as ``cifar10``, of the experiment, such as ``cifar10_small``, or with the prefix
            ``reference/``.
    Raises:
        ValueError: if there is no such network; the message lists those that exist.
    """
    short = name.removeprefix(PREFIX)
    for folder, experiment in EXPERIMENTS.items():
        if short in (folder, experiment):
            return Path(__file__).parent / folder
    known = ", ".join(f"{PREFIX}{folder} ({experiment})" for folder, experiment in EXPERIMENTS.items())
    raise ValueError(f"name must be a network that comes with optcov, {known} (got {name!r}): give one of these")
