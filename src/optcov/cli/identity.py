"""What determines the fits of a run, by which each is found again, and the checkpoints that are given instead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from optcov.cli.build import Parts
from optcov.training import Checkpoint, CheckpointError
from optcov.training.store import FORMAT, Identity, Kind, identity_key

# keys of data that say where and how, not what; what root holds is in DataSource.identity
NOT_IDENTITY = ("root", "num_workers", "cache_dir", "download", "mirrors", "checksums", "skip_corrupt")
OPTIMIZER_NOT_IDENTITY = ("fused", "foreach")  # the same steps, sooner
TRAINER_IDENTITY = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes")
NETWORK = ("model", "schedule", "parameterization", "time_offset")  # what a checkpoint must share with a config


def mean_identity(config: dict[str, Any], num_classes: int | None = None) -> Identity:
    """Everything that determines a trained mean network, from the resolved config and the classes it knows."""
    return {key: config[key] for key in NETWORK} | _classes_identity(config, num_classes) | _training_identity(config)


def _classes_identity(config: dict[str, Any], num_classes: int | None) -> Identity:
    """Nothing for an unconditional network, so that its identity is what it was before there were others."""
    return {} if num_classes is None else {"num_classes": num_classes, "label_dropout": config["label_dropout"]}


def _training_identity(config: dict[str, Any]) -> Identity:
    return {
        "format": FORMAT,
        "data": {key: value for key, value in config["data"].items() if key not in NOT_IDENTITY},
        "trainer": {key: config["trainer"].get(key) for key in TRAINER_IDENTITY},
        "ema": config["callbacks"].get("ema"),
        "optimizer": {key: value for key, value in config["optimizer"].items() if key not in OPTIMIZER_NOT_IDENTITY},
        **{key: config[key] for key in ("warmup_steps", "seed")},
    }


@dataclass(frozen=True)
class Plan:
    """What determines the fits of a run, and the checkpoints it was given instead.

    Args:
        mean, variance, classifier: the identities; None where there is nothing to fit.
        given: loaded into the run's modules already.
    """

    mean: Identity | None
    variance: Identity | None
    classifier: Identity | None
    given: dict[Kind, Checkpoint]


def plan(cfg: DictConfig, config: dict[str, Any], parts: Parts, replaced: Collection[str] | None = None) -> Plan:
    """Work out what is to be fitted, and load the checkpoints that were given instead; nothing is written.

    Args:
        cfg, config: composed, and resolved.
        parts: whose denoiser and strategy take given weights.
        replaced: the keys of given checkpoints without which a run's own would be taken; None where it would be fitted.
    Raises:
        CheckpointError: if a given checkpoint can not be used.
    """
    config = config | {"data": config["data"] | parts.data.identity()}  # with what the files hold
    given: dict[Kind, Checkpoint] = {}
    num_classes = parts.denoiser.num_classes
    mean = mean_identity(config, num_classes) if list(parts.denoiser.parameters()) else None
    if mean is not None and cfg.mean_ckpt is not None:
        given["mean"] = Checkpoint.load(Path(cfg.mean_ckpt), "mean", "mean_ckpt")
        for key in NETWORK:
            if given["mean"].identity.get(key) != mean[key]:
                other = difference(key, given["mean"].identity.get(key), mean[key])
                mend = f"give the {key} it was trained with" if replaced is None else "give one trained like the run's"
                raise CheckpointError(
                    f"mean_ckpt = {cfg.mean_ckpt} was trained with {other}: "
                    f"{mend}{_or_leave_out(['mean_ckpt'], replaced, 'train')}"
                )
        if given["mean"].identity.get("num_classes") != num_classes:
            theirs, ours = (
                "without classes" if count is None else f"with {count} classes"
                for count in (given["mean"].identity.get("num_classes"), num_classes)
            )
            other = f"set conditional={str(num_classes is None).lower()}"
            mend = other if replaced is None else "give one trained like the run's"
            raise CheckpointError(
                f"mean_ckpt = {cfg.mean_ckpt} was trained {theirs}, not {ours}: "
                f"{mend}{_or_leave_out(['mean_ckpt'], replaced, 'train')}"
            )
        _refuse_untrained_null_label(parts, given["mean"], f"mean_ckpt = {cfg.mean_ckpt}")
        mean = given["mean"].identity
        load_into(parts.denoiser, given["mean"], f"mean_ckpt = {cfg.mean_ckpt}")
    classifier = _plan_classifier(cfg, config, parts, given, replaced)
    if parts.strategy.fitting == "none":
        return Plan(mean, None, classifier, given)
    classes = _classes_identity(config, num_classes)
    network = {key: config[key] for key in NETWORK} | classes if mean is None else identity_key(mean)
    variance = {"mean": network, "var": config["var"], **_training_identity(config)}
    if classes:
        variance["label_dropout"] = config["label_dropout"]
    if cfg.var_ckpt is not None:
        given["variance"] = Checkpoint.load(Path(cfg.var_ckpt), "variance", "var_ckpt")
        for key, what in (("mean", "another mean network"), ("var", "other settings of var")):
            if given["variance"].identity.get(key) != variance[key]:
                raise CheckpointError(
                    f"var_ckpt = {cfg.var_ckpt} was fitted to {what}: "
                    f"give the one fitted here{_or_leave_out(['mean_ckpt', 'var_ckpt'], replaced, 'fit')}"
                )
        if parts.strategy.fitting == "train":
            _refuse_untrained_null_label(parts, given["variance"], f"var_ckpt = {cfg.var_ckpt}")
        load_into(parts.strategy, given["variance"], f"var_ckpt = {cfg.var_ckpt}")
    return Plan(mean, variance, classifier, given)


def _or_leave_out(keys: Sequence[str], replaced: Collection[str] | None, fit: str) -> str:
    """What to do without given checkpoints: fit what the last of these keys names, or take what the run has of them."""
    if replaced is None:
        return f", or leave {keys[-1]} out to {fit} anew"
    leave = [key for key in keys if key in replaced]
    return f", or leave {' and '.join(leave)} out for the run's own" if leave else ""


def _refuse_untrained_null_label(parts: Parts, checkpoint: Checkpoint, name: str) -> None:
    if parts.guidance is not None and parts.guidance.uses_null_label and checkpoint.identity.get("label_dropout") == 0:
        raise CheckpointError(
            f"{name} was trained with label_dropout = 0 and knows no null label, which guidance = classifier_free "
            "wants: give one trained with label_dropout=0.1, or set guidance.weight=1"
        )


def _plan_classifier(
    cfg: DictConfig,
    config: dict[str, Any],
    parts: Parts,
    given: dict[Kind, Checkpoint],
    replaced: Collection[str] | None,
) -> Identity | None:
    if parts.guidance is None or parts.guidance.classifier is None:
        return None
    asked = {"classifier": config["guidance"]["classifier"], "schedule": config["schedule"]}
    if cfg.classifier_ckpt is not None:
        given["classifier"] = Checkpoint.load(Path(cfg.classifier_ckpt), "classifier", "classifier_ckpt")
        for key in asked:
            if given["classifier"].identity.get(key) != asked[key]:
                name = "guidance.classifier" if key == "classifier" else key
                other = difference(name, given["classifier"].identity.get(key), asked[key])
                raise CheckpointError(
                    f"classifier_ckpt = {cfg.classifier_ckpt} was trained with {other}: "
                    f"give what it was trained with{_or_leave_out(['classifier_ckpt'], replaced, 'train')}"
                )
        load_into(parts.guidance.classifier, given["classifier"], f"classifier_ckpt = {cfg.classifier_ckpt}")
    return asked | _training_identity(config)


def load_into(module: nn.Module, checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Put a checkpoint's weights into a module.

    Args:
        name: of the checkpoint, for the error.
    Returns:
        The checkpoint.
    Raises:
        CheckpointError: if they are of another network.
    """
    try:
        module.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name} holds the weights of another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    return checkpoint


def difference(key: str, theirs: Any, ours: Any) -> str:
    """The first setting in which two configs differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):  # _target_ comes first
            if theirs.get(name) != ours.get(name):
                return difference(f"{key}.{name}", theirs.get(name), ours.get(name))
    return f"{key} = {theirs}, not {ours}"
