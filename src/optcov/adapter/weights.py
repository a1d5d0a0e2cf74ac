"""Finds the weights of a network in a checkpoint, whatever the training script that wrote it called them.

A checkpoint is a tree of dictionaries and lists.  Every dictionary of tensors in it that has all of the network's
parameters, under any common prefix, is a reading of it; averaged weights are preferred to raw ones.  Their names tell
them: ``ema``, ``model_ema``, ``params_ema``, ``ema_0.9999``, ``shadow_params``, ...  A list of averages is in the order
of the parameters, as in score SDEs.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

AVERAGED = ("ema_model", "ema_state_dict", "model_ema", "ema_params", "ema", "shadow_params")  # in this order
RAW = ("state_dict", "model_state_dict", "model", "module", "net", "network", "unet", "params")
PREFERRED = {name: i for i, name in enumerate((*AVERAGED, *RAW))}
IS_AVERAGED = re.compile(r"(?<![a-z])(ema|avg|average|averaged|averaging|shadow|swa|polyak)(?![a-z])")
LORA = re.compile(r"lora_|lora\.|\.alpha$|\.dora_scale$")
COMPILED = "_orig_mod."  # what torch.compile puts in front of names
DEPTH = 8  # levels of dictionaries and lists

Names = tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """A way to read a network's weights in a checkpoint.

    Args:
        place: the keys that lead to the dictionary or list, and the prefix of the names in it.
        order: where it stands in the checkpoint.
        named: the tensors, by the network's names and those left over.
        listed: averages in the order of the parameters, instead.
    """

    place: Names
    order: int
    named: dict[str, Tensor] = field(default_factory=dict)
    listed: list[Tensor] | None = None

    @property
    def is_averaged(self) -> bool:
        return IS_AVERAGED.search("/".join(self.place).lower()) is not None

    @property
    def rank(self) -> tuple[Any, ...]:
        """The preferred reading has the smallest."""
        known = min((PREFERRED[name.rstrip(".")] for name in self.place if name.rstrip(".") in PREFERRED), default=99)
        return not self.is_averaged, self.listed is not None, known, len(self.place[-1]), self.order


def load_weights(network: nn.Module, content: Any, name: str) -> None:
    """Fill a network from the content of a checkpoint.

    Args:
        network: filled in place.
        content: what the file held: dictionaries, lists, tensors and plain values.
        name: of the file.
    Raises:
        ValueError: if weights are missing, unexpected, or of another shape; the message names the first of them.
    """
    own = {_plain(key): value for key, value in network.state_dict().items()}
    parameters = {_plain(key): value for key, value in network.named_parameters()}
    groups = list(_groups(content))
    if not groups:
        got = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        if isinstance(content, Mapping):
            raise ValueError(f"{name} must hold weights (got only {got}): name its state")
        raise ValueError(f"{name} must hold a state dict (got {got}): save network.state_dict()")
    if any(is_lora(tensors) for _, tensors in groups if isinstance(tensors, dict)) and not is_lora(own):
        raise lora(name)
    readings = sorted(_readings(groups, own, set(parameters) or set(own)), key=lambda each: each.rank)
    lists = [
        Reading(place, i, listed=tensors)
        for i, (place, tensors) in enumerate(groups)
        if isinstance(tensors, list) and IS_AVERAGED.search("/".join(place).lower())
    ]
    fitting = [each for each in readings if not _misfit(each.named, own)]
    raw = next((each.named for each in fitting if own.keys() <= each.named.keys() and not each.is_averaged), None)
    chosen = next(iter(fitting), None)
    if lists and (chosen is None or not chosen.is_averaged):
        chosen_weights = _of_list(lists[0].listed or [], parameters, network, raw, own, name)
    elif chosen is None:
        raise _refusal(network, groups, readings, own, name)
    else:
        chosen_weights = chosen.named
        if not own.keys() <= chosen_weights.keys() and raw is not None:
            chosen_weights = raw | chosen_weights  # averages of parameters alone: buffers from the raw weights
        if not chosen.is_averaged and any(
            _is_averaged(place) and len(tensors) >= len(parameters) for place, tensors in groups
        ):
            warnings.warn(
                f"{name} seems to hold averaged weights that do not fit the network: its raw weights were taken",
                stacklevel=4,
            )
    _check(network, chosen_weights, own, name)
    network.load_state_dict({key: chosen_weights[_plain(key)] for key in network.state_dict()})


def is_lora(names: Iterable[str]) -> bool:
    """Whether all tensors are those of LoRA, by their names."""
    return bool(found := [LORA.search(name) is not None for name in names]) and all(found)


def lora(name: str) -> ValueError:
    """What to say to such a file."""
    return ValueError(
        f"{name} must hold the weights of a network (got a LoRA, which changes those of another one): load that one, "
        "merge the LoRA by pipeline.load_lora_weights(...) and pipeline.fuse_lora(), and give the pipeline"
    )


def _groups(content: Any, place: Names = ()) -> Iterator[tuple[Names, dict[str, Tensor] | list[Tensor]]]:
    """The dictionaries and lists of tensors in a checkpoint, and the keys that lead to them."""
    if len(place) > DEPTH:
        return
    if isinstance(content, Mapping):
        tensors = {_plain(str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            yield place, tensors
        for key, value in content.items():
            yield from _groups(value, (*place, str(key)))
    elif isinstance(content, list | tuple):
        if content and all(isinstance(each, Tensor) for each in content):
            yield place, list(content)
        else:
            for i, each in enumerate(content):
                yield from _groups(each, (*place, str(i)))


def _readings(
    groups: list[tuple[Names, dict[str, Tensor] | list[Tensor]]], own: dict[str, Tensor], needed: set[str]
) -> Iterator[Reading]:
    """The readings of dictionaries that have all of the needed names."""
    anchor = max(needed, key=len, default="")
    dotless = {key.replace(".", ""): key for key in own}
    for i, (place, tensors) in enumerate(groups):
        if isinstance(tensors, list):
            continue
        for key in tensors:
            prefix = key.removesuffix(anchor)
            if prefix != key or not anchor:
                inside = {other[len(prefix) :]: value for other, value in tensors.items() if other.startswith(prefix)}
                if (not prefix or prefix.endswith(".")) and needed <= inside.keys():
                    yield Reading((*place, prefix), i, inside)
            if not anchor:
                break
            prefix = key.removesuffix(anchor.replace(".", ""))
            if prefix != key and "." in anchor and IS_AVERAGED.search(prefix):  # latent diffusion leaves the dots out
                inside = {
                    dotless[other[len(prefix) :]]: value
                    for other, value in tensors.items()
                    if other.startswith(prefix) and other[len(prefix) :] in dotless
                }
                if needed <= inside.keys():
                    yield Reading((*place, prefix), i, inside)


def _of_list(
    averages: list[Tensor],
    parameters: Mapping[str, Tensor],
    network: nn.Module,
    raw: dict[str, Tensor] | None,
    own: dict[str, Tensor],
    name: str,
) -> dict[str, Tensor]:
    """Averages in the order of the parameters, in the raw weights."""
    trained: dict[str, Tensor] = {
        _plain(key): value for key, value in network.named_parameters() if value.requires_grad
    }
    wanted: Mapping[str, Tensor] = next((each for each in (trained, parameters) if len(each) == len(averages)), trained)
    if [each.shape for each in wanted.values()] != [each.shape for each in averages]:
        if raw is None:
            raise _alone(name)
        raise ValueError(f"{name} must hold one average per parameter (got {len(averages)} for {len(trained)})")
    named = dict(zip(wanted, averages, strict=True))
    if raw is None and own.keys() - named.keys():
        raise _alone(name)
    return (raw or {}) | named


def _alone(name: str) -> ValueError:
    return ValueError(f"{name} must hold the weights that its averages belong to: save the model's state dict, too")


def _misfit(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """The first name whose tensor has another shape."""
    return next((key for key, value in own.items() if key in weights and weights[key].shape != value.shape), None)


def _refusal(
    network: nn.Module,
    groups: list[tuple[Names, dict[str, Tensor] | list[Tensor]]],
    readings: list[Reading],
    own: dict[str, Tensor],
    name: str,
) -> ValueError:
    """What to say where no reading fits: what the most similar one lacks."""
    kind = type(network).__name__
    if readings:
        key = _misfit(readings[0].named, own) or ""
        return ValueError(
            f"{name} must hold the weights of {kind} ({key} is {list(readings[0].named[key].shape)}, not "
            f"{list(own[key].shape)}): give the network that it was saved from"
        )
    best: tuple[int, dict[str, Tensor]] = (-1, {})
    for _, tensors in groups:
        if isinstance(tensors, list):
            continue
        prefixes = Counter(
            key.removesuffix(each) for key in tensors for each in own if key == each or key.endswith(f".{each}")
        )
        prefix, hits = prefixes.most_common(1)[0] if prefixes else ("", 0)
        if hits > best[0]:
            best = hits, {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    missing, unexpected = sorted(own.keys() - best[1].keys()), sorted(best[1].keys() - own.keys())
    extra = f", has {unexpected[0]}" if unexpected else ""
    return ValueError(
        f"{name} must hold the weights of {kind} (it lacks {missing[0]}{extra}; {len(missing)} of {len(own)} are "
        "missing): give the network that it was saved from"
    )


def _check(network: nn.Module, weights: dict[str, Tensor], own: dict[str, Tensor], name: str) -> None:
    """Refuse weights that lack buffers of the network, or have more than it."""
    kind = type(network).__name__
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing:
        raise ValueError(
            f"{name} must hold the weights of {kind} (it lacks {missing[0]}; {len(missing)} of {len(own)} are "
            "missing): give the network that it was saved from"
        )
    shared = {key.partition(".")[0] for key in own}
    if any(key.partition(".")[0] in shared for key in unexpected):  # others belong to something beside the network
        raise ValueError(
            f"{name} must hold the weights of {kind} alone (it has {unexpected[0]}, too; {len(unexpected)} in all): "
            "give the network that it was saved from"
        )


def _is_averaged(place: Names) -> bool:
    return any(IS_AVERAGED.search(name.lower()) for name in place)


def _plain(key: str) -> str:
    return key.replace(COMPILED, "")
