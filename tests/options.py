"""Hydra parses some thirty files for each command, the same ones in every test: a third of a tiny run's time."""

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType

from optcov.cli.main import CONF


def read_once() -> None:
    """Let this process keep what Hydra parsed of the package's options and of its own; a test's own are read again."""
    load, kept = ConfigRepository.load_config, dict[tuple[str, str], Any]()

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is None or source.path not in (str(CONF), f"file://{CONF}", "hydra.conf"):
            return load(self, config_path)
        key = (source.path, config_path)
        if key not in kept:
            kept[key] = load(self, config_path)
        return copy.deepcopy(kept[key])

    ConfigRepository.load_config = load_once  # type: ignore[method-assign]
