"""Random values of random keys: every command line is accepted or refused in one sentence, within the quick check."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from benchmarks.command_lines import KINDS, keys
from optcov.cli.check import check
from optcov.cli.main import CONF, register_resolvers
from optcov.errors import ConfigError, sentence


@pytest.fixture(scope="module")
def composed() -> tuple[DictConfig, Any]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["output_dir=."], return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, hydra


VALUES = st.sampled_from(KINDS) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)


@settings(max_examples=60, phases=[Phase.generate])
@given(key=st.sampled_from([key for key in keys() if not key.startswith("hydra")]), value=VALUES)
def test_a_value_is_accepted_or_refused_in_one_sentence(composed: tuple[DictConfig, Any], key: str, value: str):
    cfg, hydra = composed
    try:
        (override,) = OverridesParser.create().parse_overrides([f"++{key}={value}"])
        changed = cfg.copy()
        OmegaConf.update(changed, override.key_or_group, override.value(), merge=False, force_add=True)
    except (OverrideParseException, OmegaConfBaseException, ValueError):
        return  # what Hydra refuses; `optcov.cli.explain` words it
    told = SimpleNamespace(
        overrides=SimpleNamespace(task=[f"++{key}={value}"]), runtime=hydra.runtime, mode=None, sweep=hydra.sweep
    )
    try:
        check(changed, told)
    except ConfigError as error:
        said = sentence(error)
        assert said.isprintable()
        assert "Traceback" not in said
