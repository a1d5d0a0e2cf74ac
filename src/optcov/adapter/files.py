"""Reads third-party weights and folders as data: safetensors, ``torch.save`` files without pickled objects, configs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from optcov import foreign
from optcov.adapter.conventions import Conventions

AVERAGED = (
    "ema_model",
    "ema_state_dict",
    "model_ema",
    "ema_params",
    "ema",
    "shadow_params",
)  # preferred, in this order
RAW = ("state_dict", "model_state_dict", "model", "net", "network", "unet", "params")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "online_model.",
    "ema_model.",
    "model.",
    "net.",
    "network.",
    "denoise_fn.",
    "unet.",
)
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
        if ":" in str(source):
            return named(str(source)), Conventions()
        raise ValueError(f"source = {source} does not exist: give a folder, a file of weights, or module:name")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".safetensors" and network is None:
        from optcov.adapter.own import is_own, open_own

        if is_own(path):
            return open_own(path), Conventions()
    if path.suffix in PICKLES:
        state_dict(path)  # says why not
    if network is None:
        raise ValueError(
            f"network must be given for a file of weights, {path.name}: give the module to which they belong"
        )
    load_weights(network, state_dict(path), path.name)
    return network, Conventions()


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


def state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file, preferring averaged weights; nothing in the file is executed.

    It knows the layouts of common training scripts: a state dict; a state dict under a key such as ``state_dict`` or
    ``ema``; and lists of shadow parameters beside the raw weights (score SDEs), in the order of the parameters.

    Raises:
        ValueError: if the file is a pickle of objects, damaged, or holds no weights; the message is one sentence.
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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} must hold only tensors (it holds other objects, which are not opened): if you trust it, open "
            "it yourself and use torch.save(network.state_dict(), ...)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()
        raise ValueError(
            f"{path.name} is damaged or not a file of weights ({first[0] if first else type(error).__name__}): give a "
            "safetensors file, or one of torch.save(network.state_dict())"
        ) from error
    return _weights(content, path.name)


def _weights(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict in the content of a checkpoint."""
    if isinstance(content, nn.Module) or not isinstance(content, Mapping):
        raise ValueError(f"{name} must hold a state dict (got {type(content).__name__}): save network.state_dict()")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    for key in (*AVERAGED, *RAW):
        value = content.get(key)
        if isinstance(value, Mapping) and isinstance(value.get("shadow_params"), list | tuple):
            value = value["shadow_params"]
        if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
            return _shadows(content, list(value), name)
        if isinstance(value, Mapping) and value:
            return _weights(value, name)
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{name} must hold weights (got only {', '.join(map(str, list(content)[:5]))}): name its state"
        )
    return tensors


def _shadows(content: Mapping[str, Any], shadows: list[Tensor], name: str) -> dict[str, Tensor]:
    """Put averages stored as a list, in the order of the parameters, into the raw weights; see `load_weights`."""
    raw = next((_weights(content[key], name) for key in RAW if isinstance(content.get(key), Mapping)), None)
    if raw is None:
        raise ValueError(f"{name} must hold the weights that its averages belong to: save the model's state dict, too")
    return raw | {f"{SHADOW}{i}": shadow for i, shadow in enumerate(shadows)}


SHADOW = "__shadow__."


def load_weights(network: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Fill a network from a state dict, whatever prefix its names have.

    Raises:
        ValueError: if weights are missing, unexpected, or of another shape; the message names the first of them.
    """
    shadows = [weights.pop(f"{SHADOW}{i}") for i in range(sum(key.startswith(SHADOW) for key in weights))]
    own = network.state_dict()
    weights = _without_prefix(weights, set(own))
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing:
        extra = f", has {unexpected[0]}" if unexpected else ""
        raise ValueError(
            f"{name} must hold the weights of {type(network).__name__} (it lacks {missing[0]}{extra}; {len(missing)} "
            f"of {len(own)} are missing): give the network that it was saved from"
        )
    for key, value in own.items():
        if weights[key].shape != value.shape:
            raise ValueError(
                f"{name} must hold the weights of {type(network).__name__} ({key} is {list(weights[key].shape)}, not "
                f"{list(value.shape)}): give the network that it was saved from"
            )
    if unexpected and not _is_extra(unexpected, own):
        raise ValueError(
            f"{name} must hold the weights of {type(network).__name__} alone (it has {unexpected[0]}, too; "
            f"{len(unexpected)} in all): give the network that it was saved from"
        )
    network.load_state_dict({key: weights[key] for key in own})
    if shadows:
        trained = [each for each in network.parameters() if each.requires_grad]
        if [each.shape for each in trained] != [each.shape for each in shadows]:
            raise ValueError(f"{name} must hold one average per parameter (got {len(shadows)} for {len(trained)})")
        with torch.no_grad():
            for parameter, shadow in zip(trained, shadows, strict=True):
                parameter.copy_(shadow)


def _without_prefix(weights: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Rename weights to a network's names, if stripping or choosing a prefix achieves it."""
    if own <= weights.keys():
        return weights
    heads = {key.partition(".")[0] + "." for key in weights}
    nested = {
        f"{a}{b}"
        for a in heads
        for b in {key[len(a) :].partition(".")[0] + "." for key in weights if key.startswith(a)}
    }
    order = [*PREFIXES, *sorted(heads), *sorted(nested)]
    for prefix in sorted(order, key=lambda each: (not each.startswith(("ema", "module.ema")),)):
        inner = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        if inner and own <= inner.keys():
            return inner
    return weights


def _is_extra(unexpected: list[str], own: Mapping[str, Tensor]) -> bool:
    """Whether the unused names belong to something beside the network: none shares a first name with its weights."""
    return not {key.partition(".")[0] for key in unexpected} & {key.partition(".")[0] for key in own}


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
