"""Existing mean networks: the conventions they state enter the run's config, and contradictions are refused."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from optcov.adapter import Pretrained
from optcov.adapter.check import check_conventions
from optcov.adapter.conventions import Conventions
from optcov.adapter.load import to_parameterization, to_schedule
from optcov.adapter.pretrained import sha256_of
from optcov.adapter.time import time_feed
from optcov.cli.check import settings
from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.errors import ConfigError, config_errors, must
from optcov.keys import Config
from optcov.parameterization import EDM, Parameterization
from optcov.registry import CONF, make, node, options
from optcov.schedule import NoiseSchedule, VESchedule

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
        call, said = source.open()
    own = isinstance(call, Denoiser)
    if isinstance(call, Denoiser):  # from a run of optcov, which states every convention
        classes = call.num_classes
        said = Conventions(call.data_shape, call.parameterization, call.schedule, None, None, None, classes)
    elif config.time_offset != 0:
        raise must("time_offset", "0 for model=pretrained", config.time_offset, "give model.time, such as n-1")
    if own and source.time is not None:
        raise must("model.time", "left out for a network of optcov", source.time, "its own run states it")
    config, schedule = _schedule_of(config, said)
    config, parameterization = _parameterization_of(config, said)
    if not own:
        _check_time(config, source, said, schedule)
    with config_errors("data"):
        shape = data.data_shape
    if said.shape is not None and said.shape != shape:
        raise must(
            "data",
            f"of the shape of model.source, {list(said.shape)}",
            list(shape),
            "set data.image_size or data.channels, or take other data",
        )
    num_classes = _classes_of(config, said, data)
    with _model_errors():
        denoiser = call if own else source.denoiser(call, schedule, parameterization, said, shape, num_classes)
        if own and source.data_range is not None:
            raise ValueError("data_range must be left out for a network of optcov (got one): its data lie in [-1, 1]")
    if num_classes is not None and not getattr(denoiser.network, "has_null_label", True) and config.label_dropout > 0:
        raise must(
            "label_dropout", "0 for a network without a null class", config.label_dropout, "or give model.null_class"
        )
    config = _settled(config, source, said, denoiser)
    if source.check and config.run is None and not own:
        clean = denoiser.data_range.from_unit(data.calibration(16))
        with warnings.catch_warnings(action="ignore"):
            doubt = check_conventions(denoiser, clean, None if num_classes is None else data.calibration_labels(16))
        if doubt is not None:
            log.warning("%s", doubt)
    return Given(config, data, denoiser)


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


def _schedule_of(config: Config, said: Conventions) -> tuple[Config, NoiseSchedule]:
    """Put the network's schedule into the config; returns both."""
    stated = None if said.schedule is None else to_schedule(said.schedule)
    with config_errors("schedule"):
        chosen: NoiseSchedule = instantiate(config.schedule)
    if _is_chosen(config, "schedule"):
        if stated is not None and not _same_path(chosen, stated):
            name = _named_schedule(stated)[0]
            raise must(
                "schedule",
                f"the one that model.source states, {name} of {stated.num_steps} steps",
                f"{config.choices.get('schedule', type(chosen).__name__)} of {chosen.num_steps}",
                "leave schedule out",
            )
        return config, chosen
    if stated is None:
        raise must(
            "schedule",
            "stated for model.source, which does not say",
            "nothing",
            "give schedule=linear, or another option",
        )
    name, found = _named_schedule(stated)
    return _with(config, "schedule", name, found), instantiate(found)


def _same_path(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    if a.num_steps != b.num_steps:
        return False
    inner = a.grid()[:-1]  # at the end of a path without signal, log SNR is not finite
    return bool(torch.allclose(a.log_snr(inner), b.log_snr(inner), rtol=1e-6, atol=1e-6))


def _named_schedule(schedule: NoiseSchedule) -> tuple[str, dict[str, Any]]:
    """The name and config node of the ``schedule`` option that equals this path, or of its betas."""
    count = schedule.num_steps
    for name in options("schedule"):
        try:
            made = make("schedule", name, num_steps=count)
        except ValueError:  # not defined for this number of steps
            continue
        if _same_path(made, schedule) and bool(made.alpha(torch.ones(())) == 0) == bool(
            schedule.alpha(torch.ones(())) == 0
        ):
            return name, node("schedule", name) | {"num_steps": count}
    if isinstance(schedule, VESchedule):
        ends = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
        return "ve", node("schedule", "ve") | {"num_steps": count} | ends
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.grid()])
    betas: Tensor = schedule.variance_between(grid[:-1], grid[1:])
    return "betas", {"_target_": "optcov.schedule.BetaSchedule", "betas": betas.tolist()}


def _parameterization_of(config: Config, said: Conventions) -> tuple[Config, Parameterization]:
    """Put the network's parameterization into the config; returns both."""
    chosen: Parameterization = instantiate(config.parameterization)
    stated = None if said.prediction is None else to_parameterization(said.prediction)
    if _is_chosen(config, "parameterization"):
        if stated is not None and (type(stated), vars(stated)) != (type(chosen), vars(chosen)):
            raise must(
                "parameterization",
                f"the one that model.source states, {type(stated).__name__.lower()}",
                config.choices.get("parameterization", type(chosen).__name__),
                "leave parameterization out",
            )
        return config, chosen
    if stated is None:
        raise must(
            "parameterization",
            "stated for model.source, which does not say",
            "nothing",
            f"give parameterization= one of {', '.join(options('parameterization'))}",
        )
    name = type(stated).__name__.lower()
    found = node("parameterization", name) | ({"sigma_data": stated.sigma_data} if isinstance(stated, EDM) else {})
    return _with(config, "parameterization", name, found), stated


def _check_time(config: Config, source: Pretrained, said: Conventions, schedule: NoiseSchedule) -> None:
    """Refuse a time feed that is stated nowhere, or that contradicts the source."""
    if source.time is None and said.time is None:
        raise must(
            "model.time",
            "stated for model.source, which does not say",
            "nothing",
            "give what the network is fed at step n of N: n, n-1, 1000t, 999t, t, log_snr or edm",
        )
    with config_errors("model.time"):
        ours, theirs = (time_feed(each, schedule) for each in (source.time or said.time, said.time or source.time))  # type: ignore[arg-type]
    level = schedule.levels(schedule.grid()[:-1])
    if not torch.allclose(ours(level), theirs(level)):
        raise must("model.time", f"{said.time}, as model.source states", source.time, "leave model.time out")


def _classes_of(config: Config, said: Conventions, data: DataSource) -> int | None:
    """The number of classes of the network, which must equal that of the data; None if it is unconditional."""
    if not config.conditional:
        if said.num_classes is not None:
            raise must(
                "conditional",
                "true for model.source, which takes labels",
                "false",
                "give conditional=true and such data",
            )
        return None
    with config_errors("conditional"):
        count = data.num_classes
    if said.num_classes is not None and said.num_classes != count:
        raise must("data", f"of {said.num_classes} classes, as model.source has", count, "take other data")
    return count


def _settled(config: Config, source: Pretrained, said: Conventions, denoiser: Denoiser) -> Config:
    """Put everything that was read from the source into the config."""
    with _model_errors():
        sha256 = sha256_of(denoiser)
    if source.sha256 not in (None, sha256):
        raise must(
            "model.source", f"a place of the weights with model.sha256 = {source.sha256}", sha256, "give that place"
        )
    path, data_range = source.source, denoiser.data_range
    stated: dict[str, Any] = {"sha256": sha256, "source": str(Path(path).absolute()) if Path(path).exists() else path}
    if denoiser.time is None:  # a network of ours
        config = config.model_copy(update={"time_offset": denoiser.time_offset})
    else:
        stated["time"] = source.time or said.time
        ends = [data_range.low, data_range.high]
        stated["data_range"] = ends if data_range.is_bounded else "unbounded"
        stated["learned_sigma"] = denoiser.network.learned_sigma
        stated["integer_time"] = denoiser.network.integer_time
    config = config.model_copy(update={"model": config.model | stated})
    wanted = getattr(denoiser.network, "default_head", None)
    if wanted is not None and not _is_chosen(config, "head") and config.choices.get("head") != wanted:
        found = node("head", wanted)
        if config.var.get("head") == config.head:
            config = config.model_copy(update={"var": config.var | {"head": found}})
        config = _with(config, "head", wanted, found)
    return config


def _with(config: Config, group: str, choice: str, value: dict[str, Any]) -> Config:
    return config.model_copy(update={group: value, "choices": config.choices | {group: choice}})
