"""Reads third-party weights and folders as data: safetensors, ``torch.save`` files without pickled objects, configs."""

from __future__ import annotations

import pickle
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from optcov import foreign
from optcov.adapter.conventions import Conventions
from optcov.adapter.weights import is_lora, load_weights, lora
from optcov.wording import first_line

PICKLES = (".pkl", ".pickle", ".joblib")


def open_source(source: str | Path, network: nn.Module | None) -> tuple[Any, Conventions]:
    """Open the network at a path or ``module:name``, and read the conventions it states.

    Args:
        source: the path or ``module:name``.
        network: the module to which a file of weights belongs; it is filled with the weights.
    Raises:
        ValueError: if nothing there can be used; the message is one sentence.
    """
    path = Path(source)
    if not path.exists():
        if ":" in str(source) and "://" not in str(source):
            return named(str(source)), Conventions()
        hub = "://" in str(source) or (isinstance(source, str) and source.count("/") == 1)
        other = ", or download a repository of the Hub by huggingface_hub.snapshot_download first" if hub else ""
        raise ValueError(f"source = {source} does not exist: give a folder, a file of weights, or module:name{other}")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".safetensors" and network is None:
        from optcov.adapter.own import is_own, open_own

        if is_own(path):
            return open_own(path), Conventions()
    if path.suffix in PICKLES:
        content_of(path)  # says why not
    if path.suffix == ".safetensors" and is_lora(_names(path)):
        raise lora(path.name)
    if network is None:
        if (path.parent / "config.json").is_file():
            raise ValueError(
                f"source must be the folder of a file that diffusers saved (got {path.name} alone): give {path.parent}"
            )
        raise ValueError(
            f"network must be given for a file of weights, {path.name}: give the module to which they belong"
        )
    load_weights(network, content_of(path), path.name)
    return network, Conventions()


def _names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file; none if it is damaged, which `content_of` says."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def _of_folder(folder: Path) -> tuple[Any, Conventions]:
    snapshots = folder / "snapshots"  # a repository in the Hub's cache
    if snapshots.is_dir():
        ref = folder / "refs" / "main"
        commit = ref.read_text().strip() if ref.is_file() else ""
        found = [each for each in sorted(snapshots.iterdir()) if each.is_dir()]
        if not found:
            raise ValueError(f"source = {folder} holds no snapshot: download the repository first")
        folder = next((each for each in found if each.name == commit), found[-1])
    own = folder / "checkpoints" / "mean.safetensors"
    if own.is_file():
        from optcov.adapter.own import open_own

        return open_own(own), Conventions()
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        from optcov.adapter.diffusers import of_folder

        return of_folder(folder)
    raise ValueError(
        f"source = {folder} must hold a run of optcov (checkpoints/mean.safetensors) or a model of diffusers "
        "(model_index.json or config.json): give such a folder, or a file of weights with network="
    )


def content_of(path: Path) -> Any:
    """Read a checkpoint: dictionaries, lists, tensors and plain values; nothing in the file is executed.

    Raises:
        ValueError: if the file is a pickle of objects, or damaged; the message is one sentence.
    """
    if path.suffix in PICKLES:
        raise ValueError(
            f"source = {path.name} must not be a pickle, which can run any code when it is opened: if you trust it, "
            "open it with its own code and save its weights, for EDM's files by "
            "torch.save(pickle.load(file)['ema'].model.state_dict(), 'edm.pt')"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # the settings of many scripts, which are only attributes
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} must hold only tensors (it holds other objects, which are not opened): if you trust it, open "
            "it yourself and use torch.save(network.state_dict(), ...)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path.name} is damaged or not a file of weights ({first_line(error)}): give a safetensors "
            "file, or one of torch.save(network.state_dict())"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ValueError: if it is missing or damaged.
    """
    if not path.exists():
        raise ValueError(f"{path.parent.name}/{path.name} is missing: give the whole folder")
    try:
        content = foreign.read_json(path)
    except (foreign.DamagedError, OSError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} is damaged ({error}): download the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} must hold a dictionary (got {type(content).__name__})")
    return content


def named(place: str) -> Any:
    """Import what ``module:name`` names.

    Raises:
        ValueError: if it cannot be imported.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"source = {place} cannot be imported ({error}): give module:name of a network") from error
