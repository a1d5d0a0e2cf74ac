"""Existing mean networks: what they state about themselves enters the run's config."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from hydra.utils import instantiate

from optcov.adapter import Pretrained
from optcov.adapter.agreement import (
    agreed_classes,
    agreed_parameterization,
    agreed_schedule,
    check_shape,
    check_time,
    doubt,
    settled,
)
from optcov.cli.check import settings
from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.errors import ConfigError, config_errors, must
from optcov.keys import Config
from optcov.registry import CONF, node

log = logging.getLogger(__name__)
OWN_SETTINGS = (
    "source",
    "features",
    "learned_sigma",
    "integer_time",
    "data_range",
    "null_class",
    "network must be given",
)


@dataclass(frozen=True)
class Given:
    """An existing mean network, ready for a run.

    Args:
        config: the run's config, with every convention and the SHA-256 of the weights.
        data: the run's data.
        denoiser: the denoiser with the network.
    """

    config: Config
    data: DataSource
    denoiser: Denoiser


def open_pretrained(config: Config) -> Given | None:
    """Open the existing network that a config names; None if the config's network is to be trained.

    Raises:
        ConfigError: if it does not exist or does not fit the data, or a convention is missing or contradicted.
    """
    if config.model["_target_"] != "optcov.adapter.Pretrained":
        return None
    if config.mean_ckpt is not None:
        raise must("mean_ckpt", "left out", config.mean_ckpt, "model.source is the mean network")
    with _model_errors():
        source: Pretrained = instantiate(config.model)
    with config_errors("data"):
        data: DataSource = instantiate(config.data)
    with _model_errors():
        network, said = source.open()
    is_ours = isinstance(network, Denoiser)
    if not is_ours and config.time_offset != 0:
        raise must("time_offset", "0 for model=pretrained", config.time_offset, "give model.time, such as n-1")
    for group, agreed in (("schedule", agreed_schedule), ("parameterization", agreed_parameterization)):
        chosen: Any = None
        if _is_chosen(config, group):
            with config_errors(group):
                chosen = instantiate(getattr(config, group))
        option = agreed(said, chosen, config.choices.get(group, type(chosen).__name__))
        config = config if option is None else _with(config, group, *option)
    schedule = instantiate(config.schedule)
    if not is_ours:
        check_time(source, said, schedule)
    shape, num_classes = check_shape(said, data), agreed_classes(said, data, config.conditional)
    with _model_errors():
        parameterization = instantiate(config.parameterization)
        denoiser = source.denoiser(network, schedule, parameterization, said, shape, num_classes)
    if num_classes is not None and not getattr(denoiser.network, "has_null_label", True) and config.label_dropout > 0:
        what, remedy = "0 for a network without a null class", "or give model.null_class"
        raise must("label_dropout", what, config.label_dropout, remedy)
    with _model_errors():
        config = config.model_copy(update={"model": config.model | settled(source, said, denoiser)})
    if is_ours:
        config = config.model_copy(update={"time_offset": denoiser.time_offset})
    elif source.check and config.run is None and (warning := doubt(denoiser, data)) is not None:
        log.warning("%s", warning)
    return Given(_with_its_head(config, denoiser), data, denoiser)


@contextmanager
def _model_errors() -> Iterator[None]:
    """Name the settings of `Pretrained` as keys of the config."""
    try:
        with config_errors("model"):
            yield
    except ConfigError as error:
        message = str(error).removeprefix("model: ")
        raise ConfigError(f"model.{message}" if message.startswith(OWN_SETTINGS) else str(error)) from error


def _is_chosen(config: Config, group: str) -> bool:
    """Whether the user chose a group's option or set one of its keys, for this job or for the run it is based on."""
    asked = settings(config.overrides)
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    default = next(each[group] for each in defaults if isinstance(each, dict) and group in each)
    return (
        config.run is not None
        or any(key == group or key.startswith(f"{group}.") for key in asked)
        or config.choices.get(group, default) != default
    )


def _with_its_head(config: Config, denoiser: Denoiser) -> Config:
    """The config with the head that suits the network, unless the user chose one."""
    wanted = getattr(denoiser.network, "default_head", None)
    if wanted is None or _is_chosen(config, "head") or config.choices.get("head") == wanted:
        return config
    head = node("head", wanted)
    if config.var.get("head") == config.head:
        config = config.model_copy(update={"var": config.var | {"head": head}})
    return _with(config, "head", wanted, head)


def _with(config: Config, group: str, choice: str, value: dict[str, Any]) -> Config:
    return config.model_copy(update={group: value, "choices": config.choices | {group: choice}})
