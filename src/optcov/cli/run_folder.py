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
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from optcov.added import with_added
from optcov.cli.errors import ConfigError
from optcov.files import write_atomically

# keys that make no other run: where it is, and how it is watched
NOT_OF_THE_RUN = ("output_dir", "logger")
# keys that a run which has not ended may still change: neither its networks nor its samples so far depend on them
UNTIL_THE_END = (*NOT_OF_THE_RUN, "metric", "num_samples", "sample_batch_size", "num_threads")


def claim(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Take a folder for a run, by writing its config there; what is there already is kept.

    A run that has not ended may go on with other metrics, another number of samples or another batch size of them:
    so it is mended if a metric failed, or memory did not suffice.

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
        free = NOT_OF_THE_RUN if results.is_file() else UNTIL_THE_END
        if _without(free, OmegaConf.load(saved)) != _without(free, OmegaConf.create(text)):
            raise ConfigError(f"output_dir = {folder} holds a run with another config: choose another hydra.run.dir")
    if results.is_file():
        if not saved.is_file():
            raise ConfigError(f"output_dir = {folder} holds another run's results.json: choose another hydra.run.dir")
        return dict(json.loads(results.read_text()))
    saved.parent.mkdir(parents=True, exist_ok=True)
    overrides = OmegaConf.create(list(HydraConfig.get().overrides.task))
    write_atomically(saved.with_name("overrides.yaml"), OmegaConf.to_yaml(overrides))
    write_atomically(saved, text)
    return None


def _without(keys: tuple[str, ...], config: DictConfig | ListConfig) -> dict[str, Any]:
    """A config as plain containers, whatever version wrote it, but for some of its keys."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {key: value for key, value in with_added(plain).items() if key not in keys}


def sweep_folder() -> Path | None:
    """The folder of the multirun this process belongs to, or None outside of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def choices() -> dict[str, str]:
    """The option chosen in each group, Hydra's own aside."""
    chosen = HydraConfig.get().runtime.choices
    return {str(group): str(chosen[group]) for group in chosen if not str(group).startswith("hydra")}


def overrides() -> dict[str, str]:
    """The overrides of this job inside groups and at the top level, by key."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return {each.key_or_group: str(each.value()) for each in parsed if each.key_or_group not in choices()}


def provenance(device: torch.device) -> dict[str, Any]:
    """Revision, versions and the device that computed, for ``results.json``."""
    versions = {name: importlib.metadata.version(name) for name in ("optcov", "torch", "lightning", "hydra-core")}
    return {
        "git_revision": _git_revision(),
        "versions": versions | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
    }


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
