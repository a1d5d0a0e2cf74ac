"""A run's folder: whose it is, what its config chose, and where its numbers come from."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from optcov.cli.errors import ConfigError
from optcov.report import write_atomically


def claim(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Take a folder for a run, by writing its config there; what is there already is kept.

    Args:
        folder: the run's folder.
        config: resolved.
    Returns:
        The results of the same run, if it ended here before.
    Raises:
        ConfigError: if another run has the folder.
    """
    saved, results = folder / ".hydra" / "config.yaml", folder / "results.json"
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    if saved.is_file():
        if not _same(OmegaConf.to_container(OmegaConf.load(saved)), OmegaConf.to_container(OmegaConf.create(text))):
            raise ConfigError(f"output_dir = {folder} holds a run with another config: choose another hydra.run.dir")
        return dict(json.loads(results.read_text())) if results.is_file() else None
    if results.is_file():
        raise ConfigError(f"output_dir = {folder} holds another run's results.json: choose another hydra.run.dir")
    saved.parent.mkdir(parents=True, exist_ok=True)
    overrides = OmegaConf.create(list(HydraConfig.get().overrides.task))
    write_atomically(saved.with_name("overrides.yaml"), OmegaConf.to_yaml(overrides))
    write_atomically(saved, text)
    return None


def _same(one: Any, other: Any) -> bool:
    """Whether two configs are of one run, wherever its folder is."""
    return {**one, "output_dir": None, "logger": None} == {**other, "output_dir": None, "logger": None}


def choices() -> dict[str, str]:
    """The option chosen in each group, Hydra's own aside."""
    chosen = HydraConfig.get().runtime.choices
    return {str(group): str(chosen[group]) for group in chosen if not str(group).startswith("hydra")}


def overrides() -> dict[str, str]:
    """The overrides of this job inside groups and at the top level, by key."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return {each.key_or_group: str(each.value()) for each in parsed if each.key_or_group not in choices()}


def provenance() -> dict[str, Any]:
    """Revision, versions and device, for ``results.json``."""
    versions = {name: importlib.metadata.version(name) for name in ("optcov", "torch", "lightning", "hydra-core")}
    return {
        "git_revision": _git_revision(),
        "versions": versions | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
    }


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
