"""Explains in one sentence why Hydra could not compose a config: unknown keys, groups or options, with near names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from optcov.errors import did_you_mean, must
from optcov.wording import first_line


def explain(error: Exception, overrides: Sequence[str], config_name: str, multirun: bool) -> str:
    """Explain a composition error in one sentence; Hydra must still be initialized.

    Args:
        error: Hydra's error.
        overrides: overrides of the command line.
        config_name: name of the primary config.
        multirun: whether several values of a key mean several jobs.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as unreadable:
        return str(must(unreadable.override, "KEY=VALUE", "something else", "quote lists, as in 'metric=[fid,nll]'"))
    reason = first_line(error)
    for each in parsed:
        if "${" in str(each.get_value_string()) and "nterpolation" in f"{type(error).__name__} {reason}":
            return str(must(each.key_or_group, "a value that can be resolved", reason, "correct the name, or quote it"))
    loader = GlobalHydra.instance().config_loader()
    groups = set(loader.list_groups("")) - {"hydra"}
    for each in parsed:
        key = each.key_or_group
        if each.is_sweep_override() and not multirun:
            return str(must(key, "one value", each.get_value_string(), "add -m to run each of them"))
        if key not in groups and "/" not in key:
            continue
        options = [name for name in loader.get_group_options(key, ObjectType.CONFIG) if not name.endswith("_of_run")]
        valid = f"one of {', '.join(options)}"
        if each.is_delete() or each.value() is None:
            return str(must(key, valid, "nothing", f"leave {each.input_line} out"))
        for option in _options(each):
            if options and option not in options:
                return str(
                    must(
                        key,
                        valid,
                        "nothing" if option in (None, "") else option,
                        did_you_mean(str(option), options, f"give {key}=OPTION"),
                    )
                )
    chosen = [each.input_line or "" for each in parsed if each.key_or_group in groups and not each.is_sweep_override()]
    try:
        cfg = compose(config_name, [*chosen, "output_dir=null"])
    except Exception:  # as in `optcov.cli.main`
        cfg = OmegaConf.create()
    others = [each for each in parsed if each.key_or_group not in groups and cfg]
    unknown = [_unknown(each.key_or_group, each, cfg, groups) for each in others if each.key_or_group[:5] != "hydra"]
    return next(filter(None, unknown), reason)


def _options(override: Override) -> list[Any]:
    """The options named by an override of a group."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return [getattr(each, "text", each) for each in values]


def _unknown(key: str, override: Override, cfg: DictConfig, groups: set[str]) -> str | None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return _unknown(parent, override, cfg, groups) if parent else None
    if name in set(node):  # a key whose value is missing counts as well
        return f"{key} is a key already: leave the + of {override.input_line} out" if override.is_add() else None
    if override.is_add() or override.is_force_add():
        return None
    valid = {str(each) for each in node if each != "_target_"} | (set() if parent else groups)
    where = f"{parent} has no key {name}" if parent else f"{name} is not a key of the config"
    return f"{where}: {did_you_mean(name, valid)}"
