"""What a source states about its network must agree with what the user chose; both are written as options of ``conf/``.

The errors name the keys of the config, because these functions serve ``model=pretrained``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optcov.adapter.check import check_conventions
from optcov.adapter.conventions import Conventions
from optcov.adapter.load import to_parameterization, to_schedule
from optcov.adapter.pretrained import Pretrained, sha256_of
from optcov.adapter.time import time_feed
from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.errors import config_errors, must
from optcov.parameterization import EDM, Parameterization
from optcov.registry import make, node, options
from optcov.schedule import NoiseSchedule, VESchedule

Option = tuple[str, dict[str, Any]]  # the name of an option of a group, and its content


def agreed_schedule(said: Conventions, chosen: NoiseSchedule | None, name: str) -> Option | None:
    """The ``schedule`` of a network, where only its source states it; None where the user chose it.

    Args:
        said: what the source states.
        chosen: what the user chose; None for nothing.
        name: the name of that.
    Raises:
        ConfigError: if they differ, or neither says anything.
    """
    stated = None if said.schedule is None else to_schedule(said.schedule)
    if chosen is None and stated is None:
        raise _unstated("schedule", "give schedule=linear, or another option")
    if chosen is not None and stated is not None and not _same_path(chosen, stated):
        ours = f"the one that model.source states, {schedule_option(stated)[0]} of {stated.num_steps} steps"
        raise must("schedule", ours, f"{name} of {chosen.num_steps}", "leave schedule out")
    return None if chosen is not None or stated is None else schedule_option(stated)


def schedule_option(schedule: NoiseSchedule) -> Option:
    """The option of ``schedule`` that equals a path, or that of its betas."""
    count = schedule.num_steps
    for name in options("schedule"):
        try:
            made = make("schedule", name, num_steps=count)
        except ValueError:  # not defined for this number of steps
            continue
        if _same_path(made, schedule) and _ends_in_noise(made) == _ends_in_noise(schedule):
            return name, node("schedule", name) | {"num_steps": count}
    if isinstance(schedule, VESchedule):
        ends = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
        return "ve", node("schedule", "ve") | {"num_steps": count} | ends
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.grid()])
    betas: Tensor = schedule.variance_between(grid[:-1], grid[1:])
    return "betas", {"_target_": "optcov.schedule.BetaSchedule", "betas": betas.tolist()}


def _same_path(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    if a.num_steps != b.num_steps:
        return False
    inner = a.grid()[:-1]  # at the end of a path without signal, log SNR is not finite
    return bool(torch.allclose(a.log_snr(inner), b.log_snr(inner), rtol=1e-6, atol=1e-6))


def _ends_in_noise(schedule: NoiseSchedule) -> bool:
    return bool(schedule.alpha(torch.ones(())) == 0)


def agreed_parameterization(said: Conventions, chosen: Parameterization | None, name: str) -> Option | None:
    """The ``parameterization`` of a network; arguments, answer and errors as in `agreed_schedule`."""
    stated = None if said.prediction is None else to_parameterization(said.prediction)
    if chosen is None and stated is None:
        raise _unstated("parameterization", f"give parameterization= one of {', '.join(options('parameterization'))}")
    if chosen is None and stated is not None:
        own = {"sigma_data": stated.sigma_data} if isinstance(stated, EDM) else {}
        option = type(stated).__name__.lower()
        return option, node("parameterization", option) | own
    if stated is not None and (type(stated), vars(stated)) != (type(chosen), vars(chosen)):
        ours = f"the one that model.source states, {type(stated).__name__.lower()}"
        raise must("parameterization", ours, name, "leave parameterization out")
    return None


def check_time(source: Pretrained, said: Conventions, schedule: NoiseSchedule) -> None:
    """Refuse a time feed that is stated nowhere, or that contradicts the source.

    Raises:
        ConfigError: if it is either.
    """
    if source.time is None and said.time is None:
        remedy = "give what the network is fed at step n of N: n, n-1, 1000t, 999t, t, log_snr or edm"
        raise _unstated("model.time", remedy)
    with config_errors("model.time"):
        ours, theirs = (time_feed(each, schedule) for each in (source.time or said.time, said.time or source.time))  # type: ignore[arg-type]
    level = schedule.levels(schedule.grid()[:-1])
    if not torch.allclose(ours(level), theirs(level)):
        raise must("model.time", f"{said.time}, as model.source states", source.time, "leave model.time out")


def check_shape(said: Conventions, data: DataSource) -> tuple[int, ...]:
    """The shape of a sample of the data, which is refused if it is not the network's."""
    with config_errors("data"):
        shape = data.data_shape
    if said.shape is not None and said.shape != shape:
        theirs, remedy = list(said.shape), "set data.image_size or data.channels, or take other data"
        raise must("data", f"of the shape of model.source, {theirs}", list(shape), remedy)
    return shape


def agreed_classes(said: Conventions, data: DataSource, conditional: bool) -> int | None:
    """The number of classes of the network, which must be that of the data; None if it is unconditional."""
    if not conditional:
        if said.num_classes is not None:
            what, remedy = "true for model.source, which takes labels", "give conditional=true and such data"
            raise must("conditional", what, "false", remedy)
        return None
    with config_errors("conditional"):
        count = data.num_classes
    if said.num_classes is not None and said.num_classes != count:
        raise must("data", f"of {said.num_classes} classes, as model.source has", count, "take other data")
    return count


def settled(source: Pretrained, said: Conventions, denoiser: Denoiser) -> dict[str, Any]:
    """The settings of ``model=pretrained`` with which the same network is found again, from anywhere.

    Raises:
        ConfigError: if its weights are other than those the user asked for.
        ValueError: if it has no weights.
    """
    sha256 = sha256_of(denoiser)
    if source.sha256 not in (None, sha256):
        what = f"a place of the weights with model.sha256 = {source.sha256}"
        raise must("model.source", what, sha256, "give that place")
    place = Path(source.source)
    found: dict[str, Any] = {"sha256": sha256, "source": str(place.absolute()) if place.exists() else source.source}
    if denoiser.time is None:  # a network of ours
        return found
    data_range, network = denoiser.data_range, denoiser.network
    return found | {
        "time": source.time or said.time,
        "data_range": [data_range.low, data_range.high] if data_range.is_bounded else "unbounded",
        "learned_sigma": network.learned_sigma,
        "integer_time": network.integer_time,
    }


def doubt(denoiser: Denoiser, data: DataSource) -> str | None:
    """What a few images say against the conventions of a network, see `check_conventions`."""
    clean = denoiser.data_range.from_unit(data.calibration(16))
    with warnings.catch_warnings(action="ignore"):
        labels = None if denoiser.num_classes is None else data.calibration_labels(16)
        return check_conventions(denoiser, clean, labels)


def _unstated(key: str, remedy: str) -> Exception:
    return must(key, "stated for model.source, which does not say", "nothing", remedy)
