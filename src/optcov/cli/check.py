"""Checks a composed config within milliseconds: its keys, types, and the arguments of every ``_target_``.

It imports nothing slow, so that a typo is reported at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from optcov.errors import ConfigError, did_you_mean, must
from optcov.keys import BREAKS_A_RUN, GROUPS, RANGES, Config
from optcov.signatures import Signature

WORDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "too_short": "a list of at least {min_length}",
    "string_pattern_mismatch": "of the form {pattern}",
    "too_long": "a list of at most {max_length}",
}


def check(cfg: DictConfig, hydra: Any) -> Config:
    """Check and resolve a config, and add to it what the command line chose.

    Args:
        cfg: the composed config, without Hydra's own node.
        hydra: Hydra's own node.
    Raises:
        ConfigError: if a key is missing or unknown, or a value or an argument has the wrong type; the message is one
            sentence.
    """
    task = hydra.overrides.task
    plain: Any = OmegaConf.to_container(task) if OmegaConf.is_list(task) else task  # ${...} in them is text
    overrides = [str(each) for each in plain]
    asked = settings(overrides)
    choices = {str(key): str(choice) for key, choice in hydra.runtime.choices.items() if not key.startswith("hydra")}
    for name in (name for name, info in Config.model_fields.items() if info.is_required()):
        if name not in cfg or (name in GROUPS and cfg[name] is None):
            raise must(name, "set", "nothing", f"give {name}={'OPTION' if name in GROUPS else 'VALUE'}")
        if name in GROUPS and not OmegaConf.is_dict(cfg[name]):
            raise must(name, "an option of its group", cfg[name], f"give {name}=OPTION")
        if name in GROUPS and "_target_" in cfg[name] and name not in choices:
            raise must(name, "one option of its group", asked.get(name, "several"), f"give {name}=OPTION")
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key, reason = getattr(error, "full_key", None) or "the config", str(error).splitlines()[0]
        raise must(key, "a value that can be resolved", reason, "correct the name, or quote the value") from error
    assert isinstance(resolved, dict)
    for key, value in leaves(resolved):
        if isinstance(value, float) and not math.isfinite(value):
            raise must(key, "a finite number", value, "give a number")
    for name, why in BREAKS_A_RUN.items():
        if isinstance(trainer := resolved.get("trainer"), dict) and name in trainer:
            raise must(f"trainer.{name}", "left out", trainer[name], why)
    for key in map(str, resolved.keys() - Config.model_fields.keys()):
        raise ConfigError(f"{key} is not a key of the config: {did_you_mean(key, resolved.keys() - {key})}")
    about = {
        "choices": {key: value for key, value in asked.items() if key in GROUPS} | choices,  # or lists of options
        "overrides": overrides,
        "sweep": str(hydra.sweep.dir) if hydra.mode is not None and hydra.mode.name == "MULTIRUN" else None,
    }
    try:
        config = Config.model_validate(resolved | about)
    except ValidationError as error:
        raise _refusal("", error) from error
    check_targets(resolved)
    return config


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """The values that overrides set, by key; the value of a group is an option."""
    return {each.key_or_group: str(each.value()) for each in OverridesParser.create().parse_overrides(list(overrides))}


def nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every node of a config with its full key."""
    yield key, node
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nodes(value, f"{key}.{name}" if key else str(name))


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield every plain value of a config with its full key."""
    return ((key, node) for key, node in nodes(config) if not isinstance(node, (dict, list)))


def targets(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node that has a ``_target_``, with its full key."""
    return ((key, node) for key, node in nodes(config) if isinstance(node, dict) and "_target_" in node)


def check_targets(config: Any) -> None:
    """Refuse arguments, anywhere in a config, that their class does not take or that have a wrong type.

    Raises:
        ConfigError: if there is one; the message names the key, the value and what is valid.
    """
    for where, node in targets(config):
        target = str(node["_target_"])
        try:
            # our own signatures can be read from source; third-party ones may need an import
            signature = Signature.read(target) or (None if target.startswith("optcov.") else Signature.imported(target))
        except (ImportError, AttributeError, NameError, TypeError, ValueError):
            signature = None
        if signature is None:
            raise must(f"{where}._target_", "a class or function that can be imported", target, "correct its name")
        for name, value in node.items():
            if name.startswith("_"):
                continue
            if name not in signature.parameters and not signature.takes_any:
                valid = did_you_mean(name, signature.parameters)
                raise ConfigError(f"{where}.{name} is not an argument of {target}: {valid}")
            if name in GROUPS and isinstance(value, str):
                raise must(f"{where}.{name}", "left out, as it follows its group", value, f"set {name}={value}")
            if not (isinstance(value, dict) and "_target_" in value):
                key = f"{where}.{name}"
                _check_type(key, value, RANGES.get(key, signature.parameters.get(name, Any)))


def _check_type(key: str, value: Any, annotation: Any) -> None:
    try:
        # validate as JSON, where a list may stand for a tuple, as in yaml
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        raise _refusal(key, error) from error
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        pass  # not a type of plain values; the class itself will check it


def _wording(error: Any) -> str:
    """What a value must be, in the words of our own checks where pydantic's are others."""
    found = WORDS.get(error["type"])
    limits = {
        name: int(each) if isinstance(each, float) and each.is_integer() else each
        for name, each in error.get("ctx", {}).items()
    }
    return str(error["msg"]) if found is None else found.format(**limits)


def _refusal(key: str, error: ValidationError) -> ConfigError:
    errors = error.errors()
    where = key or str(errors[0]["loc"][0])
    plain = [_wording(each) for each in errors if each["type"] != "needs_python_object"]
    plain = plain or ["an object with a _target_"]
    what = " or ".join(dict.fromkeys(each.split("Input should be ")[-1] for each in plain))
    what = what.removeprefix("Value error, ")
    return must(where, what, errors[0]["input"], f"give such a value, or leave {where} out for its default")
