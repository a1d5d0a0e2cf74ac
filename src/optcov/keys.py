"""Declares every key of a run's config once, with its type and what it determines.

Everything that depends on the meaning of a key is derived from `Config`: what identifies a fit and a sample, which
settings a stopped run may change, what ``sample.py`` and ``evaluate.py`` may set, and which settings label a row of a
report.  Adding a key takes one line here and one line in ``conf/config.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


class Determines(Flag):
    """What a key determines; a key may determine several things."""

    NETWORK = auto()  # the function that the mean network computes; a checkpoint must have the same value
    TRAINING = auto()  # the weights at the end of training
    VARIANCE = auto()  # what is fitted to the mean network
    SAMPLES = auto()  # sample i, given the weights
    SCORE = auto()  # only what is measured
    PLACE = auto()  # where and how a job runs and is monitored; affects run times but no other result
    GIVEN = auto()  # which files are read; results depend on their content, never on their names
    UNLABELLED = auto()  # never labels a row of a report: it is a column, averaged over, or changes only rounding


NETWORK, TRAINING, VARIANCE, SAMPLES, SCORE, PLACE, GIVEN, UNLABELLED = Determines
MOST, MOST_AT_ONCE = 1_000_000_000, 1_000_000  # limits of counts, and of what is held in memory at once
# max_time does not affect results, because a fit that it ends is not kept as finished
PLACE_OF_TRAINER = ("accelerator", "strategy", "deterministic", "benchmark", "log_every_n_steps", "max_time")


@dataclass(frozen=True)
class Key:
    """The meaning of a key.

    Args:
        determines: what the key determines; this also holds for keys inside it that no pattern of ``inside`` matches.
        inside: what keys inside a group determine, by pattern; the first match counts.
        tasks: tasks that take the key; none takes those that optcov sets itself.
    """

    determines: Determines
    inside: Mapping[str, Determines] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("train", "sample", "evaluate")


def _has_target(node: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        raise ValueError("Input should have a _target_, the class to make")
    return node


Part = Annotated[dict[str, Any], AfterValidator(_has_target)]  # one object, given by its class and arguments
Parts = dict[str, Part]  # several objects by name


class Config(BaseModel):
    """A resolved config.  Groups are plain dictionaries; all other values have the types declared here."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    model: Annotated[Part, Key(NETWORK, {"source": GIVEN, "check": PLACE})]
    schedule: Annotated[Part, Key(NETWORK)]
    parameterization: Annotated[Part, Key(NETWORK)]
    time_offset: Annotated[int, Field(ge=-MOST, le=MOST), Key(NETWORK)]
    conditional: Annotated[bool, Key(NETWORK)]
    seed: Annotated[NonNegativeInt, Field(lt=2**32), Key(TRAINING | SAMPLES | UNLABELLED)]
    data: Annotated[
        Part,
        Key(
            TRAINING,
            dict.fromkeys(("*cache_dir", "*download", "*mirrors*", "*checksums*"), PLACE)
            | dict.fromkeys(("*root", "*skip_corrupt", "autoencoder"), GIVEN),
        ),
    ]
    label_dropout: Annotated[float, Field(ge=0, lt=1), Key(TRAINING)]
    warmup_steps: Annotated[NonNegativeInt, Field(le=MOST), Key(TRAINING)]
    cooldown: Annotated[float, Field(ge=0, le=1), Key(TRAINING)]
    variance_steps: Annotated[Annotated[int, Field(ge=1, le=MOST)] | None, Key(VARIANCE)]
    variance_lr: Annotated[PositiveFloat | None, Key(VARIANCE)]
    optimizer: Annotated[Part, Key(TRAINING, {"fused": PLACE, "foreach": PLACE})]
    callbacks: Annotated[Parts, Key(TRAINING | UNLABELLED, {"tracking*": PLACE, "*": TRAINING})]
    trainer: Annotated[
        Part,
        Key(
            TRAINING | PLACE,
            dict.fromkeys(PLACE_OF_TRAINER, PLACE)
            | dict.fromkeys(("devices", "num_nodes"), TRAINING | PLACE)
            | {"precision": TRAINING | SAMPLES, "*": TRAINING},
        ),
    ]
    head: Annotated[Part, Key(VARIANCE)]
    var: Annotated[Part, Key(VARIANCE)]
    guidance: Annotated[Part, Key(SAMPLES)]
    sampler: Annotated[Part, Key(SAMPLES, {"num_steps": SAMPLES | UNLABELLED})]
    trajectory: Annotated[Part, Key(SAMPLES)]
    labels: Annotated[NonNegativeInt | list[NonNegativeInt] | None, Key(SAMPLES)]
    sample_precision: Annotated[Literal["32-true", "bf16-mixed", "16-mixed"] | None, Key(SAMPLES)]
    compile: Annotated[bool, Key(SAMPLES | UNLABELLED)]
    channels_last: Annotated[bool | Literal["auto"], Key(SAMPLES | UNLABELLED)]
    num_samples: Annotated[PositiveInt, Field(le=MOST), Key(SCORE | UNLABELLED)]
    metric: Annotated[
        Parts,
        Key(
            SCORE | UNLABELLED,
            {"*.batch_size": PLACE, "*.download": PLACE, "*.weights": GIVEN}
            | {"*.split": SCORE | UNLABELLED, "*.num_images": SCORE | UNLABELLED, "*": SCORE},
        ),
    ]
    mean_ckpt: Annotated[str | None, Key(GIVEN)]
    var_ckpt: Annotated[str | None, Key(GIVEN)]
    classifier_ckpt: Annotated[str | None, Key(GIVEN)]
    sample_batch_size: Annotated[PositiveInt, Field(le=MOST_AT_ONCE), Key(PLACE)]
    num_threads: Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["auto"], Key(PLACE)]
    logger: Annotated[Parts, Key(PLACE)]
    cache_dir: Annotated[str, Field(min_length=1), Key(PLACE)]
    checkpoint_every: Annotated[PositiveInt, Field(le=MOST), Key(PLACE)]
    output_dir: Annotated[str, Key(PLACE)]
    wait: Annotated[bool, Key(PLACE)]
    # set only by sample.py and evaluate.py
    run: Annotated[str | None, Key(PLACE, tasks=("sample", "evaluate"))] = None
    trust: Annotated[list[str], Key(PLACE, tasks=("sample", "evaluate"))] = []
    mode: Annotated[Part | None, Key(PLACE, tasks=("sample",))] = None
    format: Annotated[Literal["npz", "png"], Key(PLACE, tasks=("sample",))] = "npz"
    # not in any file: the choices on the command line, and the multirun to which the job belongs
    choices: Annotated[dict[str, str], Key(PLACE, tasks=())] = {}
    overrides: Annotated[list[str], Key(PLACE, tasks=())] = []
    sweep: Annotated[str | None, Key(PLACE, tasks=())] = None

    @property
    def reference_dir(self) -> Path:
        """The folder that caches statistics of training images."""
        return Path(self.cache_dir) / "reference"

    @property
    def sampling_precision(self) -> str:
        """The precision of sampling: ``sample_precision`` if set, otherwise the trainer's."""
        return str(self.sample_precision or self.trainer["precision"])


KEYS: dict[str, Key] = {
    name: next(each for each in info.metadata if isinstance(each, Key)) for name, info in Config.model_fields.items()
}

_COUNT, _RATE = Annotated[int, Field(ge=0, le=MOST)], Annotated[float, Field(ge=0)]
_POSITIVE = Annotated[int, Field(ge=1, le=MOST)]
# the ranges of arguments whose classes do not state them
RANGES: dict[str, Any] = {
    "trainer.max_steps": _POSITIVE,
    "trainer.accumulate_grad_batches": _POSITIVE,
    "trainer.log_every_n_steps": _POSITIVE,
    "trainer.num_nodes": _POSITIVE,
    "trainer.max_time": Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$")] | None,
    "trainer.gradient_clip_val": Annotated[float, Field(gt=0)] | None,
    "optimizer.lr": _RATE,
    "optimizer.weight_decay": _RATE,
    "optimizer.eps": _RATE,
    "data.batch_size": Annotated[int, Field(ge=1, le=MOST_AT_ONCE)],
    "data.seed": Annotated[int, Field(ge=0, lt=2**32)],
    "data.val_size": _COUNT,
    "data.test_size": _COUNT,
    "data.limit": _POSITIVE | None,
    "data.num_train": _POSITIVE,
    "data.num_test": _POSITIVE,
}
# arguments of Lightning's Trainer that a run reads
NEEDED_BY_A_RUN = ("accelerator", "devices", "num_nodes", "strategy", "precision", "max_steps")
# and those that would make it differ from what its folder says
BREAKS_A_RUN = {
    **dict.fromkeys(
        ("max_epochs", "min_epochs", "min_steps", "limit_train_batches", "overfit_batches"),
        "a fit has trainer.max_steps steps",
    ),
    **dict.fromkeys(
        ("fast_dev_run", "barebones", "limit_predict_batches", "limit_val_batches", "limit_test_batches"),
        "trials have a small trainer.max_steps and num_samples",
    ),
    **dict.fromkeys(
        ("logger", "callbacks", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        "logger and callbacks are keys of their own",
    ),
    **dict.fromkeys(
        ("inference_mode", "use_distributed_sampler", "reload_dataloaders_every_n_epochs"),
        "optcov sets it",
    ),
}

GROUPS = {
    name for name, info in Config.model_fields.items() if info.is_required() and get_origin(info.annotation) is dict
}


def determines(key: str) -> Determines:
    """What a key determines, by its full name such as ``data.root``; an undeclared key determines samples."""
    top, _, rest = key.partition(".")
    declared = KEYS.get(top, Key(SAMPLES))
    if rest:
        for pattern, found in declared.inside.items():
            if fnmatchcase(rest, pattern):
                return found
    return declared.determines


def select(config: Mapping[str, Any], wanted: Callable[[Determines], Any], prefix: str = "") -> dict[str, Any]:
    """Select the wanted keys of a config, at any depth; groups that become empty are left out.

    Args:
        config: a plain, resolved config.
        wanted: says whether to select a key, given what the key determines.
        prefix: prefix of the key names, with its dot.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if inner := select(value, wanted, f"{key}."):
                found[str(name)] = inner
        elif wanted(determines(key)):
            found[str(name)] = value
    return found


def is_fixed(what: Determines) -> bool:
    """Whether a key belongs to a run's network, so that sampling or evaluating the run cannot change it."""
    return bool(what & (NETWORK | TRAINING)) and not what & (SAMPLES | PLACE)


def is_label(key: str) -> bool:
    """Whether a setting may label a row of a report; others are columns, averaged over, or cannot change a score."""
    what = determines(key)
    return what != PLACE and not what & UNLABELLED


def difference(key: str, theirs: Any, ours: Any) -> str:
    """Describe the first setting in which two configs differ."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in sorted(theirs.keys() | ours.keys()):  # _target_ comes first
            if theirs.get(name) != ours.get(name):
                return difference(f"{key}.{name}" if key else str(name), theirs.get(name), ours.get(name))
    return f"{key} = {theirs}, not {ours}"
