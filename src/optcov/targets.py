"""The nodes of a config that name a class, and whether their arguments are such as the class takes.

Like `optcov.signatures`, this imports nothing slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from optcov.errors import ConfigError, did_you_mean, must
from optcov.keys import GROUPS, RANGES
from optcov.signatures import Signature

WORDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "string_too_short": "not empty",
    "too_short": "a list of at least {min_length}",
    "string_pattern_mismatch": "of the form {pattern}",
    "too_long": "a list of at most {max_length}",
}


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
            if name in ("_args_", "_recursive_"):
                raise must(f"{where}.{name}", "left out", value, "give arguments by their names")
            if name == "_partial_" and not isinstance(value, bool):
                raise must(f"{where}.{name}", "true or false", value, "leave it as its group has it")
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
        raise refusal(key, error) from error
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


def refusal(key: str, error: ValidationError) -> ConfigError:
    """The sentence for a value that pydantic refused; an empty key stands for the one that the error names."""
    errors = error.errors()
    where = key or str(errors[0]["loc"][0])
    plain = [_wording(each) for each in errors if each["type"] != "needs_python_object"]
    plain = plain or ["an object with a _target_"]
    what = " or ".join(dict.fromkeys(each.split("Input should be ")[-1] for each in plain))
    what = what.removeprefix("Value error, ")
    return must(where, what, errors[0]["input"], f"give such a value, or leave {where} out for its default")
