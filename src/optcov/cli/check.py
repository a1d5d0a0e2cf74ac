"""Checks a composed config within milliseconds: its keys, types, and the arguments of every ``_target_``.

It imports nothing slow, so that a typo is reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from optcov.errors import ConfigError, did_you_mean, must
from optcov.keys import BREAKS_A_RUN, GROUPS, KEYS, NEEDED_BY_A_RUN, Config
from optcov.targets import check_targets, leaves, refusal
from optcov.wording import first_line


def check(cfg: DictConfig, hydra: Any, task: str) -> Config:
    """Check and resolve a config, and add to it what the command line chose.

    Args:
        cfg: the composed config, without Hydra's own node.
        hydra: Hydra's own node.
        task: ``train``, ``sample`` or ``evaluate``; keys that belong to another task are refused.
    Raises:
        ConfigError: if a key is missing or unknown, or a value or an argument has the wrong type; the message is one
            sentence.
    """
    given = hydra.overrides.task
    plain: Any = OmegaConf.to_container(given) if OmegaConf.is_list(given) else given  # ${...} in them is text
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
        key, reason = getattr(error, "full_key", None) or "the config", first_line(error)
        raise must(key, "a value that can be resolved", reason, "correct the name, or quote the value") from error
    assert isinstance(resolved, dict)
    for key, value in leaves(resolved):
        if isinstance(value, float) and not math.isfinite(value):
            raise must(key, "a finite number", value, "give a number")
    trainer: Any = resolved.get("trainer")
    for name, why in BREAKS_A_RUN.items():
        if name in trainer:
            raise must(f"trainer.{name}", "left out", trainer[name], why)
    for name in NEEDED_BY_A_RUN:
        if name not in trainer:
            raise must(f"trainer.{name}", "set", "nothing", f"leave ~trainer.{name} out")
    for key in map(str, resolved):
        tasks = KEYS[key].tasks if key in KEYS else ()
        if not tasks:
            raise ConfigError(f"{key} is not a key of the config: {did_you_mean(key, KEYS.keys() & resolved.keys())}")
        if task not in tasks:
            raise must(key, f"left out of {task}", resolved[key], f"it is a key of {' and '.join(tasks)}")
    about = {
        "choices": {key: value for key, value in asked.items() if key in GROUPS} | choices,  # or lists of options
        "overrides": overrides,
        "sweep": str(hydra.sweep.dir) if hydra.mode is not None and hydra.mode.name == "MULTIRUN" else None,
    }
    try:
        config = Config.model_validate(resolved | about)
    except ValidationError as error:
        raise refusal("", error) from error
    check_targets(resolved)
    return config


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """The values that overrides set, by key; the value of a group is an option."""
    return dict(map(_setting, overrides))


@cache
def _setting(override: str) -> tuple[str, str]:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.key_or_group, str(parsed.value())
