"""Opens networks trained by optcov: a checkpoint holds the config of its network, which is read only as data."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from optcov.checkpoint import Checkpoint
from optcov.denoiser import Denoiser
from optcov.parameterization import Parameterization
from optcov.schedule.base import NoiseSchedule
from optcov.trust import is_allowed
from optcov.variance.base import VarianceStrategy

T = TypeVar("T")


def is_own(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint of optcov."""
    try:
        with safe_open(path, framework="pt") as file:
            return "identity" in (file.metadata() or {})
    except SafetensorError:
        return False


def open_own(path: Path) -> Denoiser:
    """Load the denoiser in a ``mean.safetensors``.

    Raises:
        ValueError: if the file is damaged, holds something else, or names a class that is not one of optcov.
    """
    checkpoint = Checkpoint.load(path, "mean", "source")
    config = checkpoint.identity
    try:
        shape, parameterization = tuple(map(int, config["data_shape"])), config["parameterization"]
        classes = {} if config.get("num_classes") is None else {"num_classes": int(config["num_classes"])}
        schedule = _made("schedule", config["schedule"], NoiseSchedule)  # type: ignore[type-abstract]
        network = _made("model", config["model"], nn.Module, data_shape=shape, **classes)
        meaning = _made("parameterization", parameterization, Parameterization)  # type: ignore[type-abstract]
        denoiser = Denoiser(network, schedule, meaning, int(config["time_offset"]))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"source = {path} was written by another version of optcov ({error}): train it again, or give its network"
        ) from error
    denoiser.load_state_dict(checkpoint.weights)
    return denoiser


def open_own_strategy(path: Path, denoiser: Denoiser) -> VarianceStrategy:
    """Load the strategy in a ``variance.safetensors``, in eval mode.

    Args:
        path: the file.
        denoiser: the one in the ``mean.safetensors`` of the same run.
    Raises:
        ValueError: as `open_own`.
    """
    checkpoint = Checkpoint.load(path, "variance", "source")
    try:
        strategy = _made("var", checkpoint.identity["var"], VarianceStrategy, denoiser=denoiser)  # type: ignore[type-abstract]
        strategy.load_state_dict(checkpoint.weights)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"source = {path} must hold a strategy that this version of optcov fitted to this network ({error}): fit "
            "it again"
        ) from error
    return strategy.requires_grad_(False).eval()


def _made(place: str, node: Any, kind: type[T], **arguments: Any) -> T:
    """Make an object of an optcov class from an untrusted config node.

    Raises:
        ValueError: if the node names anything else.
    """
    made = _class(place, node, kind)
    return made(**_settings(place, node), **arguments)


def _class(place: str, node: Any, kind: type[T]) -> type[T]:
    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name, None) if is_allowed(place, target) else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"source must name a {kind.__name__} of optcov (got {target}): load others with network=")
    return found


def _settings(place: str, node: dict[str, Any]) -> dict[str, Any]:
    """The arguments in a node; one that is a node itself stands for a module, or for what makes it."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            inner, settings = _class(f"{place}.{key}", value, nn.Module), _settings(f"{place}.{key}", value)
            value = partial(inner, **settings) if value.get("_partial_") else inner(**settings)
        if not key.startswith("_"):
            found[key] = value
    return found
