"""Hydra parses and merges thirty files for each command, the same ones in every test: half of a tiny run's time."""

import pickle
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from optcov.cli.main import CONF

SOURCES = (str(CONF), "hydra.conf")
PROVIDERS = ("main", "hydra")  # what these are called in what Hydra read of them


def read_once() -> None:
    """Let this process keep what Hydra parsed and merged of the package's options and of its own; where a test has
    options of its own, all are read again."""
    load, merge, choices = (
        ConfigRepository.load_config,
        ConfigLoaderImpl._compose_config_from_defaults_list,
        defaults_list._create_interpolation_map,
    )
    parsed, merged = dict[tuple[str, str], bytes](), dict[str, bytes]()  # pickles copy in an eighth of deepcopy's time

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is None or source.path not in SOURCES:
            return load(self, config_path)
        key = (source.path, config_path)
        if key not in parsed:
            parsed[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(parsed[key])

    def merge_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        loaded = [repo.load_config(each.config_path) for each in defaults if each.config_path is not None]
        if any(each is None or each.provider not in PROVIDERS for each in loaded):
            return merge(self, defaults, repo)
        key = repr(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        found: DictConfig = pickle.loads(merged[key])
        return found

    def choices_where_wanted(overrides: Any, elements: list[Any], self_added: bool) -> DictConfig:
        """What an interpolation in a defaults list may refer to; without one, nothing is looked up."""
        wanted = any(each.is_interpolation() for each in elements if not each.is_self())
        return choices(overrides, elements, self_added) if wanted else OmegaConf.create()

    ConfigRepository.load_config = load_once  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = merge_once  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = choices_where_wanted
