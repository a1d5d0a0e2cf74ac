"""A fitted strategy in a folder: ``strategy.safetensors`` and ``strategy.json``, which is read as data.

The json names strategies and heads of optcov alone, their settings, and what the denoiser must share.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import nn

from optcov.checkpoint import digest_of
from optcov.denoiser import Denoiser
from optcov.files import write_atomically
from optcov.schedule import VPSDESchedule
from optcov.variance.base import Closed, Traits, VarianceStrategy
from optcov.wording import first_line

T = TypeVar("T")

FORMAT = 1
CONFIG, WEIGHTS = "strategy.json", "strategy.safetensors"
LIMIT = 1 << 20  # bytes of a json
STRATEGIES, HEADS = "optcov.variance", "optcov.model"  # where the classes are that a json may name


def save(folder: Path, denoiser: Denoiser | None, strategy: VarianceStrategy) -> None:
    """Write a strategy; see `VarianceStrategy.save_pretrained`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in strategy.state_dict().items()}
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{type(strategy).__name__} must be fitted before it is saved (got NaN in {name}): fit it")
    if denoiser is not None:
        check_fits(denoiser, strategy)
    config = {
        "format": FORMAT,
        "strategy": _node(strategy),
        "made_for": asdict(strategy.made_for),
        "weights_sha256": digest_of(weights),
        "denoiser_sha256": None if denoiser is None else digest_of(dict(denoiser.network.state_dict())),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, serialized(weights))
    write_atomically(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def load_strategy(folder: str | Path, denoiser: Denoiser | None = None) -> VarianceStrategy:
    """A strategy from a folder that `VarianceStrategy.save_pretrained` wrote; nothing in it runs.

    Args:
        folder: of ``strategy.json`` and ``strategy.safetensors``.
        denoiser: the one it is for, which is compared with the one it was fitted to; None to compare where it is used.
    Returns:
        The strategy, in eval mode, on the CPU, with the same bits.
    Raises:
        ValueError: in one sentence, if the folder is damaged, names a class that is not of optcov, or does not fit.
    """
    folder = Path(folder)
    config = _read(folder / CONFIG)
    try:
        given = dict(config["made_for"])
        traits = Traits(**{each.name: given[each.name] for each in fields(Traits)})
        traits = Traits(**asdict(traits) | {name: tuple(given[name]) for name in ("data_shape", "log_snr")})
        weights, denoiser_like = load_file(folder / WEIGHTS), _stand_in(traits)
        if digest_of(weights) != config["weights_sha256"]:
            raise ValueError("its weights do not match their checksum")
        with torch.device("meta"):  # a json may ask for more memory than there is; the file of weights cannot
            shapes = _made(config["strategy"], STRATEGIES, VarianceStrategy, denoiser_like).state_dict()  # type: ignore[type-abstract]
        if {name: value.shape for name, value in shapes.items()} != {k: v.shape for k, v in weights.items()}:
            raise ValueError("its weights have other shapes than its json says")
        strategy = _made(config["strategy"], STRATEGIES, VarianceStrategy, denoiser_like)  # type: ignore[type-abstract]
        strategy.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError, ValueError, ImportError) as error:
        first = first_line(error)
        raise ValueError(
            f"{folder} must hold a strategy that save_pretrained of this version wrote (got {first}): save it again"
        ) from error
    strategy.made_for = traits
    if denoiser is not None:
        check_fits(denoiser, strategy)
        expected = config.get("denoiser_sha256")
        if expected is not None and expected != digest_of(dict(denoiser.network.state_dict())):
            raise ValueError(
                f"denoiser must have the weights that the strategy in {folder} was fitted to (got others): fit one to "
                "these with optcov.fit"
            )
    return strategy.requires_grad_(False).eval()


def check_fits(denoiser: Denoiser, strategy: VarianceStrategy) -> None:
    """Refuse a denoiser of other shapes, another path or another target than the strategy was made for.

    Raises:
        ValueError: naming the first difference.
    """
    if isinstance(strategy, Closed):  # nothing was fitted
        return
    ours, theirs = asdict(strategy.made_for), asdict(Traits.of(denoiser))
    for name, wanted in ours.items():
        if theirs[name] != wanted:
            raise ValueError(
                f"denoiser must have the {name} that the strategy was made for, {wanted} (got {theirs[name]}): fit "
                f"{type(strategy).__name__} to this denoiser, or load the one it was fitted to"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()[: LIMIT + 1]
        content = json.loads(text) if len(text) <= LIMIT else None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be the json of a strategy (got {error}): give a folder of save_pretrained"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} must be the json of a strategy of format {FORMAT}: give a folder of save_pretrained")
    return content


def _node(strategy: VarianceStrategy) -> dict[str, Any]:
    """The class of a strategy of optcov, and its settings, of which one that makes a head is a node itself."""
    kind = type(strategy)
    if kind.__module__.split(".")[0] != "optcov":
        raise ValueError(f"{kind.__name__} must be a class of optcov to be saved (got one of {kind.__module__})")
    return _named(kind) | {"settings": {name: _setting(name, value) for name, value in strategy.given.items()}}


def _named(kind: type) -> dict[str, Any]:
    return {"class": f"{kind.__module__}.{kind.__qualname__}"}


def _setting(name: str, value: Any) -> Any:
    if isinstance(value, type) or (isinstance(value, partial) and isinstance(value.func, type) and not value.args):
        kind: Any = value.func if isinstance(value, partial) else value
        settings = value.keywords if isinstance(value, partial) else {}
        if kind.__module__.startswith(f"{HEADS}."):
            return _named(kind) | {"settings": settings}
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{name} must be a number, a name or a head of optcov for a strategy to be saved (got {value}): make the "
        "strategy by its name"
    )


def _made(node: Any, home: str, kind: type[T], *shapes: Any) -> T:
    """An object of a class of optcov from its node; a head is made once the strategy knows its shapes."""
    module, _, name = str(node["class"]).rpartition(".")
    found = getattr(import_module(module), name, None) if module.startswith(f"{home}.") else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{node['class']}, which is not a {kind.__name__} of {home}")
    settings = {
        key: partial(_made, value, HEADS, nn.Module) if isinstance(value, dict) else value
        for key, value in node["settings"].items()
    }
    return found(*shapes, **settings)


class _Shapes(nn.Module):
    """A network of given shapes that answers nothing."""

    def __init__(self, traits: Traits) -> None:
        super().__init__()
        self.data_shape, self.feature_channels = traits.data_shape, traits.feature_channels
        self.num_classes, self.learned_sigma = traits.num_classes, traits.learned_sigma


def _stand_in(traits: Traits) -> Denoiser:
    with torch.no_grad():
        return Denoiser(_Shapes(traits), VPSDESchedule(traits.num_steps))
