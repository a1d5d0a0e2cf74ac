"""A run's folder: reads and writes its config, claims the folder for a run, and records where its numbers come from.

A folder may come from a stranger.  Its config is treated as data of limited size, without interpolations or defaults
lists.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from optcov.cli.check import leaves
from optcov.cli.errors import ConfigError, must
from optcov.files import write_atomically
from optcov.keys import KEYS, PLACE, SCORE, Config, select
from optcov.upgrade import CHOICES, upgrade

LIMIT = 1 << 20  # largest file in bytes
OF_A_COMMAND = {"run", "trust", "mode", "format", "overrides", "sweep"}  # keys of a command, not of the run


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
            choices = CHOICES | {key: value for key, value in results.items() if key in KEYS and isinstance(value, str)}
        values = upgrade({key: value for key, value in values.items() if key not in OF_A_COMMAND})
        strange = [f"the key {key}" for key in values if key not in KEYS]
        strange += [f"a defaults list in {key}" for key, _ in leaves(values) if "defaults" in key.split(".")]
        strange += [f"an interpolation in {key}" for key, value in leaves(values) if "${" in str(value)]
        strange += [
            f"the choice {group}={choice}"
            for group, choice in choices.items()
            # such as data, or data@data.source
            if not re.fullmatch(r"(\w+)(@\1\.\w+)?", group)
            or group.partition("@")[0] not in (*KEYS, "experiment")
            or not re.fullmatch(r"[\w\[\], ']+", str(choice))
        ]
        if strange:
            remedy = "give another, or use the version of optcov that wrote it"
            raise must(
                "run", "a folder whose config this version of optcov wrote", folder, f"it holds {strange[0]}: {remedy}"
            )
        return cls(values, {str(key): str(value) for key, value in choices.items()}, [str(each) for each in overrides])


def _plain(folder: Path, name: str) -> Any:
    """The content of a YAML or JSON file."""
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"run = {folder} is not the folder of a run (no {path}): give one that train.py printed")
    text = path.read_bytes()[: LIMIT + 1].decode(errors="replace")
    try:
        # a few aliases can expand to gigabytes
        if len(text) > LIMIT or any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise yaml.YAMLError
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        remedy = f"its {name} is damaged, larger than {LIMIT >> 20} MiB, or not plain YAML"
        raise must("run", "a folder that train.py has printed", folder, remedy) from error


def write_config(folder: Path, config: Config) -> None:
    """Write the resolved config, which marks the folder as belonging to this run."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    values = config.model_dump(exclude=OF_A_COMMAND - ({"run"} if config.run else set()))
    write_atomically(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))


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
    results, saved = folder / "results.json", folder / ".hydra" / "config.yaml"
    if saved.is_file():
        free = PLACE if results.is_file() else PLACE | SCORE
        theirs = select(Saved.read(folder).values, lambda what: not what & free)
        if theirs != select(config.model_dump(), lambda what: not what & free):
            raise ConfigError(f"output_dir = {folder} holds a run with another config: choose another hydra.run.dir")
    if results.is_file():
        if not saved.is_file():
            raise ConfigError(f"output_dir = {folder} holds another run's results.json: choose another hydra.run.dir")
        return dict(json.loads(results.read_text()))
    saved.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(saved.with_name("overrides.yaml"), OmegaConf.to_yaml(OmegaConf.create(config.overrides)))
    write_config(folder, config)
    return None


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
