"""Restores a run's saved config, on which ``sample.py`` and ``evaluate.py`` build.

Each group of the run becomes an option of that group; choosing another option on the command line replaces the whole
group.  Keys that only say where a job runs come from this machine and this command.  A saved config may name only the
classes that `optcov.trust` allows in their places, and those that the user's own command line or config names;
``model.source=MODULE:NAME`` is imported only if the user's command line names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from optcov.cli.check import settings
from optcov.errors import ConfigError, must
from optcov.keys import GIVEN, GROUPS, PLACE, Config, determines, difference, is_fixed, select
from optcov.run_folder import Saved
from optcov.targets import targets
from optcov.trust import is_allowed

CONF = Path(__file__).parents[1] / "conf"
OF_RUN = "_of_run"  # suffix of options that hold a run's own settings


def store_run(task: str, overrides: Sequence[str], config_dir: str | None) -> tuple[str, Saved]:
    """Register a run's config with Hydra, which must be initialized.

    Args:
        task: ``sample`` or ``evaluate``.
        overrides: overrides of the command line.
        config_dir: a folder with the user's own options; None for none.
    Returns:
        The name of the primary config to compose, and what the run saved.
    Raises:
        ConfigError: if the folder holds no run, or its config names a class that is not trusted.
    """
    given = {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(list(overrides))}
    if not isinstance(given["run"], str):
        raise must("run", "one folder", given["run"], "give a folder that train.py has printed")
    saved = Saved.read(Path(given["run"]))
    here = _here(saved, overrides, config_dir)
    trusted = set(map(str, trust)) if isinstance(trust := given.get("trust"), list) else set()
    known = {(key, str(node["_target_"])) for key, node in targets(here)}
    for key, node in targets(saved.values):
        target = str(node["_target_"])
        if target not in trusted and (key, target) not in known and not is_allowed(key, target):
            what = "a class of optcov, torch.optim or Lightning that belongs there"
            raise must(
                f"{key}._target_ of run = {given['run']}", what, target, f"if you trust it, add 'trust=[{target}]'"
            )
    for name in ("sample", "evaluate"):  # where output goes if hydra.run.dir does not say otherwise
        if (Path(given["run"]) / name).is_symlink():
            raise must("run", "a folder", given["run"], f"its {name} is a link to elsewhere: remove it")
    source = str(saved.values["model"].get("source"))
    if ":" in source and "model.source" not in given and source not in trusted:  # MODULE:NAME would be imported
        raise must(
            f"model.source of run = {given['run']}",
            "a folder or a file",
            source,
            f"it is code: if you trust it, add model.source={source}",
        )
    kept = {key for key in settings(saved.overrides) if determines(key) & GIVEN}
    store, defaults, top = ConfigStore.instance(), list[Any](), dict[str, Any]()
    for key, value in saved.values.items():
        if not isinstance(value, dict):
            top[key] = here[key] if determines(key) & (PLACE | GIVEN) else value
            continue
        node = _merged(key, value, here[key], kept)
        if key == "var" and node.get("head") == saved.values["head"]:
            node["head"] = "${head}"  # so that this command line may choose another head
        choice = saved.choices.get(key, "")
        name = f"{choice}{OF_RUN}" if choice.isidentifier() else OF_RUN
        store.store(group=key, name=name, node=node)
        defaults.append({key: name})
    base = yaml.safe_load((CONF / f"{task}.yaml").read_text())
    defaults += [each for each in base.pop("defaults") if isinstance(each, dict)]  # mode
    defaults += [{"hydra": "default"}, "_self_", {"experiment": None}, {"override hydra/help": "optcov"}]
    store.store(name=f"{task}{OF_RUN}", node={"defaults": defaults} | top | base)
    return f"{task}{OF_RUN}", saved


def _here(saved: Saved, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The options that the run chose, as defined on this machine, with interpolations unresolved."""
    folders = [CONF, *([] if config_dir is None else [Path(config_dir)])]
    known = []
    for key, choice in saved.choices.items():
        group, _, package = key.partition("@")  # such as data@data.source
        there = choice[0] == "[" or any((each / group / f"{choice}.yaml").is_file() for each in folders)
        if group in GROUPS and (not package or package.partition(".")[0] == group) and there:
            known.append(f"{key}={choice}")
    cfg = compose("config", [*known, *(each for each in overrides if each.startswith("hydra.searchpath="))])
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _merged(key: str, theirs: dict[str, Any], here: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    """A group of the run whose place keys come from the same class on this machine, or keep their defaults."""
    found: dict[str, Any] = {}
    here = here if here.get("_target_") == theirs.get("_target_") else {}
    for name in [*theirs, *(name for name in here if name not in theirs)]:
        full = f"{key}.{name}"
        if determines(full) in (PLACE, GIVEN) and full not in kept:
            found |= {name: here[name]} if name in here else {}
        elif isinstance(theirs.get(name), dict):
            mine = here.get(name)
            found[name] = _merged(full, theirs[name], mine if isinstance(mine, dict) else {}, kept)
        elif name in theirs:
            found[name] = theirs[name]
    return found


def restored(config: Config, saved: Saved) -> Config:
    """Complete the config of a job on a run with the run's choices and overrides that are still in effect.

    Args:
        config: the checked config of the job.
        saved: what the run saved.
    Raises:
        ConfigError: if a setting needs a network or data other than the run's; the message names the first one.
    """
    asked = settings(config.overrides)
    choices = {
        group: saved.choices.get(group, choice) if choice.endswith(OF_RUN) else choice
        for group, choice in config.choices.items()
    }
    theirs, ours = (select(values, is_fixed) for values in (saved.values, config.model_dump()))
    for key in ours:
        explicit = any(each.startswith(f"{key}.") and is_fixed(determines(each)) for each in asked)
        if key in asked and not is_fixed(determines(key)) and not explicit:  # trainer=gpu says where to sample
            config = config.model_copy(update={key: getattr(config, key) | theirs[key]})
        elif theirs.get(key) != ours[key]:
            found = difference(key, theirs.get(key), ours[key])
            changed = [group for group in ("experiment", key) if choices.get(group) != saved.choices.get(group)]
            leave = next(iter(changed), found.partition(" = ")[0])
            raise ConfigError(f"run = {config.run} was made with {found}: leave {leave} out, or train a run with it")
    again = {key.partition(".")[0] if key in choices else key for key in asked}
    lines = [
        line
        for line in saved.overrides
        for key in settings([line])
        if key not in again and key.partition(".")[0] not in again and not determines(key) & (PLACE | GIVEN)
    ]
    return config.model_copy(update={"choices": choices, "overrides": [*lines, *config.overrides]})
