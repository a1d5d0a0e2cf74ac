"""Makes the options of each group by name, without Hydra; the yaml files in ``conf/`` are the only list of options."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from optcov.errors import did_you_mean, must

CONF = Path(__file__).parent / "conf"


def options(group: str) -> list[str]:
    """The names of a group's options, such as those of ``var`` or ``sampler``."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def make(group: str, name: str, /, **settings: Any) -> Any:
    """Make an option of a group, with the settings of its yaml file unless others are given.

    Args:
        group: ``var``, ``sampler``, ``trajectory``, ``schedule``, ``parameterization``, ``head``, ...
        name: the name of the option.
        settings: settings that replace those of the file, and arguments that the file does not set.
    Returns:
        The object; if the yaml file says ``_partial_``, a function of the missing arguments.
    Raises:
        ValueError: if there is no such option, or the option has no such setting.
    """
    known = options(group)
    if name not in known:
        raise must(group, f"one of {', '.join(known)}", repr(name), did_you_mean(name, known, "give one of these"))
    settled = node(group, name)
    found = {key: _part(value) for key, value in settled.items() if key not in ("_target_", "_partial_")}
    module, _, attribute = str(settled["_target_"]).rpartition(".")
    target = getattr(import_module(module), attribute)
    if settled.get("_partial_"):
        return partial(target, **found | settings)
    try:
        return target(**found | settings)
    except TypeError as error:
        unknown = [key for key in settings if f"'{key}'" in str(error)]
        if not unknown:
            raise
        remedy = did_you_mean(unknown[0], found, "give one of these")
        raise must(f"settings of {group}={name}", f"among {', '.join(found)}", repr(unknown[0]), remedy) from error


def settings_of(group: str, name: str) -> list[str]:
    """The settings of an option."""
    return [key for key in node(group, name) if key not in ("_target_", "_partial_")]


def node(group: str, name: str) -> dict[str, Any]:
    """The content of an option's file, merged over the options of the same group that its ``defaults`` list names."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(content, dict)
    below = (node(group, base) for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_")
    return {str(key): value for part in (*below, content) for key, value in part.items()}


def resolve(group: str, wanted: Any, /, **settings: Any) -> Any:
    """Make an object of a group from its name; an object is returned unchanged."""
    if isinstance(wanted, str):
        return make(group, wanted, **settings)
    if settings:
        raise ValueError(
            f"settings must be left out for a {group} given as an object (got {', '.join(settings)}): give its name "
            "instead"
        )
    return wanted


def _part(value: Any) -> Any:
    """Resolve a value of a yaml file; ``${group}`` becomes the option that ``config.yaml`` chooses for that group."""
    if not (isinstance(value, str) and value.startswith("${")):
        return value
    group = value[2:-1]
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)["defaults"]  # type: ignore[call-overload, index]
    return make(group, next(str(each[group]) for each in defaults if isinstance(each, dict) and group in each))
