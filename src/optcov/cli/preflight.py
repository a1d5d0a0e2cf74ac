"""Checks of a composed config that take milliseconds: interpolations, names and types of every argument.

Hydra refuses unknown groups and keys itself; what it lets pass are values of a wrong type and ``+key`` arguments that
no class takes.  Both are found here, before anything heavy starts.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_type_hints

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from optcov.cli.errors import ConfigError
from optcov.denoiser import Parameterization


class TopLevel(BaseModel):
    """Types of the keys that belong to no group."""

    model_config = ConfigDict(strict=True, extra="ignore")
    seed: NonNegativeInt
    parameterization: Parameterization
    time_offset: int
    warmup_steps: NonNegativeInt
    compile: bool
    num_threads: PositiveInt | Literal["auto"]
    channels_last: bool | Literal["auto"]
    sample_precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None
    num_samples: PositiveInt
    sample_batch_size: PositiveInt
    conditional: bool
    label_dropout: Annotated[float, Field(ge=0, lt=1)]
    labels: NonNegativeInt | list[NonNegativeInt] | None
    mean_ckpt: str | None
    var_ckpt: str | None
    classifier_ckpt: str | None
    cache_dir: str
    checkpoint_every: PositiveInt
    output_dir: str


def check(cfg: DictConfig) -> dict[str, Any]:
    """Refuse a config with a wrong type, an unknown argument or an unresolved value.

    Returns:
        The resolved config as plain containers.
    Raises:
        ConfigError: naming key, value and what is valid.
    """
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(resolved, dict)
    try:
        TopLevel.model_validate(resolved)
    except ValidationError as error:
        _refuse("", error)
    check_targets(cfg)
    return {str(key): value for key, value in resolved.items()}


def check_targets(cfg: DictConfig, key: str = "") -> None:
    """Refuse an argument that its class does not take, or of a wrong type, anywhere below ``key``.

    Raises:
        ConfigError: naming key, value and what is valid.
    """
    for full_key, node in _targets(cfg, key):
        _check_call(full_key, node)


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a ``_target_``, by its full key."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, {str(name): node[name] for name in node}
        for name in node:
            yield from _targets(node[name], f"{key}.{name!s}" if key else str(name))


def _check_call(key: str, node: dict[str, Any]) -> None:
    try:
        target = get_object(node["_target_"])
    except (HydraException, ValueError, ImportError) as error:
        raise ConfigError(
            f"{key}._target_ = {node['_target_']} is not a class or function that can be imported"
        ) from error
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any:
            valid = ", ".join(p for p in parameters if p not in ("self", "args", "kwargs"))
            raise ConfigError(f"{key}.{name} is no argument of {node['_target_']}: it takes {valid}")
        if name in hints and not (isinstance(value, DictConfig) and "_target_" in value):
            _check_type(f"{key}.{name}", value, hints[name])


def _check_type(key: str, value: Any, annotation: Any) -> None:
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=True)
    try:
        # read as JSON, in which a list may stand for a tuple, as in yaml
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        _refuse(key, error)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        pass  # a type of no plain value: the class itself will say


def _refuse(key: str, error: ValidationError) -> None:
    first = error.errors()[0]
    where = key or str(first["loc"][0])
    problem = "; or ".join(dict.fromkeys(each["msg"][0].lower() + each["msg"][1:] for each in error.errors()))
    raise ConfigError(f"{where} = {first['input']!r} has the wrong type or range: {problem}") from error
