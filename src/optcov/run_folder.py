"""A run's folder: reads and writes its config, claims the folder for a run, and records where its numbers come from.

A folder may come from a stranger.  Its config is treated as data of limited size, without interpolations or defaults
lists.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from optcov.errors import ConfigError, must
from optcov.files import write_atomically
from optcov.foreign import DamagedError, label, read_json, read_yaml, sealed_json, sealed_yaml
from optcov.keys import GROUPS, KEYS, PLACE, SCORE, Config, select
from optcov.targets import nodes
from optcov.upgrade import CHOICES, upgrade

OF_A_COMMAND = {"run", "trust", "mode", "format", "overrides", "sweep"}  # keys of a command, not of the run
CONFIG = ".hydra/config.yaml"
OF_A_REPORT = ("variance.csv", "samples.png")  # files of a run that a report reads, beside its results


@dataclass(frozen=True)
class Saved:
    """The config that a run's folder holds.

    Args:
        values: the resolved config.
        choices: the option chosen in each group.
        overrides: overrides of the run's command line.
    """

    values: dict[str, Any]
    choices: dict[str, str]
    overrides: list[str]

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Read a folder from an untrusted source.

        Raises:
            ConfigError: if it holds no run, or its config has content that no saved config has.
        """
        values, overrides = (_plain(folder, f".hydra/{name}.yaml") for name in ("config", "overrides"))
        if not isinstance(values, dict) or not isinstance(overrides, list):
            raise must("run", "a folder that train.py has printed", folder, "its config has another form")
        choices = values.pop("choices", None)
        if choices is None:  # an earlier version, which stored them in its results
            results = _plain(folder, "results.json") if (folder / "results.json").is_file() else {}
            found = results if isinstance(results, dict) else {}
            choices = CHOICES | {key: value for key, value in found.items() if key in KEYS and isinstance(value, str)}
        values = upgrade({key: value for key, value in values.items() if key not in OF_A_COMMAND})
        if strange := next(_strange(values, choices, overrides), None):
            remedy = f"it holds {strange}: give another, or use the version of optcov that wrote it"
            raise must("run", "a folder whose config this version of optcov wrote", folder, remedy)
        return cls(values, choices, overrides)


def _strange(values: dict[str, Any], choices: Any, overrides: list[Any]) -> Iterator[str]:
    """What no saved config holds, or what would have an effect beyond being a value."""
    yield from (f"the key {label(key)}" for key in values if key not in KEYS)
    for key, value in nodes(values):
        name = key.rpartition(".")[2]
        if name == "defaults":
            yield f"a defaults list in {label(key)}"
        if name.startswith("_") and name not in ("_target_", "_partial_"):  # Hydra's, such as _args_
            yield f"the key {label(key)}"
        if name == "_partial_" and key.count(".") == 1 and not key.startswith(("optimizer.", "head.")):
            yield f"the key {label(key)}"  # only parts of a group are made later
        if "${" in key or (isinstance(value, str) and "${" in value):
            yield f"an interpolation in {label(key)}"
        if value == "???":
            yield f"no value of {label(key)}"
    for group, choice in choices.items() if isinstance(choices, dict) else [("choices", choices)]:
        top = str(group).partition("@")[0]  # such as data, or data@data.source
        named = re.fullmatch(r"(\w+)(@\1\.\w+)?", str(group)) and top in (*GROUPS, "experiment")
        if not named or not re.fullmatch(r"\w+|\[[\w, ']*\]", str(choice)):
            yield f"the choice {label(group)}={label(choice)}"
    yield from (f"the override {label(each)}" for each in overrides if not isinstance(each, str))
    try:
        Config.model_validate(values)
    except ValidationError as error:
        yield f"{label(error.errors()[0]['loc'][0])}, of which it is said: {label(error.errors()[0]['msg'])}"


def _plain(folder: Path, name: str) -> Any:
    """The content of a YAML or JSON file."""
    path = folder / name
    if not path.exists():
        raise ConfigError(f"run = {folder} is not the folder of a run (no {path}): give one that train.py printed")
    try:
        return (read_json if path.suffix == ".json" else read_yaml)(path)
    except DamagedError as error:
        raise must("run", "a folder that train.py has printed", folder, f"its {name} is damaged, {error}") from error


def write_config(folder: Path, config: Config) -> None:
    """Write the overrides and the resolved config, which marks the folder as belonging to this run."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    overrides = OmegaConf.to_yaml(OmegaConf.create(config.overrides))
    write_atomically(folder / ".hydra" / "overrides.yaml", sealed_yaml(overrides))
    values = config.model_dump(exclude=OF_A_COMMAND - ({"run"} if config.run else set()))
    write_atomically(folder / ".hydra" / "config.yaml", sealed_yaml(OmegaConf.to_yaml(OmegaConf.create(values))))


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write ``results.json``, which marks the run as finished, with its checksum and those of what a report reads."""
    files = {name: folder / name for name in (*OF_A_REPORT, CONFIG) if (folder / name).is_file()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    results["files"] = digests
    write_atomically(folder / "results.json", sealed_json(results, indent=2))


def open_run_folder(config: Config) -> dict[str, Any] | None:
    """Claim the output folder for a run by writing its config there; existing files are kept.

    An unfinished run may continue with other metrics, another number of samples or on another machine, so that it can
    be completed after a metric failed or memory ran out.

    Returns:
        The results, if the same run has already finished in this folder; otherwise None.
    Raises:
        ConfigError: if the folder belongs to another run.
    """
    folder = Path(config.output_dir)
    results, saved = folder / "results.json", folder / CONFIG
    if saved.exists():
        free = PLACE if results.is_file() else PLACE | SCORE
        if config.run is not None and _run_of(saved) != Path(config.run).absolute():
            raise ConfigError(f"output_dir = {folder} holds another run's evaluation: choose another hydra.run.dir")
        theirs = select(_own(folder).values, lambda what: not what & free)
        if theirs != select(config.model_dump(), lambda what: not what & free):
            raise ConfigError(f"output_dir = {folder} holds a run with another config: choose another hydra.run.dir")
    if results.exists():
        if not saved.exists():
            raise ConfigError(f"output_dir = {folder} holds another run's results.json: choose another hydra.run.dir")
        return read_results(folder)
    write_config(folder, config)
    return None


def refuse_links(folder: Path) -> None:
    """Refuse links in a folder that is written to; in one from a stranger they could lead anywhere.

    Raises:
        ConfigError: naming the first link.
    """
    for path in sorted((*folder.glob("*"), *folder.glob(".hydra/*"), *folder.glob("checkpoints/*"))):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            name = label(path.relative_to(folder))
            raise ConfigError(
                f"output_dir = {folder} cannot be used (its {name} is a link to elsewhere): remove the link, or choose "
                "another hydra.run.dir"
            )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _run_of(saved: Path) -> Path | None:
    """The run that an evaluation is of, in the config of its folder."""
    try:
        run = read_yaml(saved).get("run")
    except (DamagedError, AttributeError):
        return None
    return Path(run).absolute() if isinstance(run, str) else None


def _own(folder: Path) -> Saved:
    """The config in a folder that is written to.

    Raises:
        ConfigError: if it is damaged.
    """
    try:
        return Saved.read(folder)
    except ConfigError as error:
        raise ConfigError(f"output_dir = {folder} cannot be used ({error}): choose another hydra.run.dir") from error


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run in a folder that is written to.

    Raises:
        ConfigError: if they are damaged.
    """
    try:
        found = read_json(folder / "results.json")
        if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict):
            raise DamagedError("it holds no metrics")
        said, config = _dict(found.get("files")).get(CONFIG), folder / CONFIG
        if said is not None and said != hashlib.sha256(config.read_bytes()).hexdigest():
            raise DamagedError("it is of another config")
        return dict(found)
    except DamagedError as error:
        what = f"output_dir = {folder} holds a damaged results.json, {error}"
        raise ConfigError(f"{what}: delete it and give the same command again, or choose another folder") from error


def provenance() -> dict[str, Any]:
    """The git revision and the library versions, for ``results.json``."""
    versions = {name: importlib.metadata.version(name) for name in ("optcov", "torch", "lightning", "hydra-core")}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        revision = described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {"git_revision": revision, "versions": versions | {"python": platform.python_version()}}
