"""What determines each fit of a run: it names the cache entry, and a checkpoint given instead must agree with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from optcov.checkpoint import FORMAT, Checkpoint, CheckpointError, Identity, Kind, identity_key
from optcov.denoiser import Denoiser
from optcov.errors import ConfigError, must
from optcov.keys import NETWORK, TRAINING, Config, difference, select
from optcov.parts import Parts
from optcov.run_folder import Saved
from optcov.variance.base import Calibrated

log = logging.getLogger(__name__)

AMPLIFIED = 1000.0  # by which the error of a network of unclipped data may be multiplied
CHECKPOINTS: dict[str, Kind] = {"mean_ckpt": "mean", "var_ckpt": "variance", "classifier_ckpt": "classifier"}


@dataclass(frozen=True)
class FitPlan:
    """What determines each fit of a run, and the checkpoints that replace fits.

    Args:
        mean, variance, classifier: the identities; None if there is nothing to fit.
        given: checkpoints that are already loaded into the run's modules.
    """

    mean: Identity | None
    variance: Identity | None
    classifier: Identity | None
    given: dict[Kind, Checkpoint]


def plan_fits(config: Config, parts: Parts) -> FitPlan:
    """Determine what must be fitted, and load the checkpoints given instead; writes nothing.

    A job on a run takes the checkpoints of that run where its config names no others.

    Args:
        config: a checked config.
        parts: the objects of the run; checkpoints are loaded into its denoiser, strategy and classifier.
    Raises:
        CheckpointError: if a given checkpoint cannot be used.
        ConfigError: if a checkpoint is given that nothing needs, or the run of the config has none that is needed.
    """
    given: dict[Kind, Checkpoint] = {}
    measured = ["var_ckpt"] if isinstance(parts.strategy, Calibrated) else []  # without learning a null label

    def load(key: str, module: nn.Module, expected: Identity, problems: Mapping[str, str]) -> Checkpoint | None:
        """Load the checkpoint that a key names, if any; refuse it if its identity differs in one of ``problems``."""
        asked, kind = getattr(config, key), CHECKPOINTS[key]
        path = asked or _own(config, kind)
        if path is None:
            return None
        if not asked and not Path(path).is_file() and not _was_fitted(config, kind):
            raise _not_of_the_run(config, parts, kind)
        given[kind] = checkpoint = Checkpoint.load(Path(path), kind, key)
        if not asked and kind == "variance" and checkpoint.identity.get("var") != expected["var"]:
            raise _not_of_the_run(config, parts, kind)
        if not asked and kind == "mean":
            _check_training(config, checkpoint, path)
        for name, problem in problems.items():
            theirs, ours = checkpoint.identity.get(name), expected[name]
            if theirs != ours:
                leave = key if asked else "mean_ckpt"  # the run's own variance fits its own mean
                raise CheckpointError(
                    f"{key} = {path} was {problem or f'trained with {difference(name, theirs, ours)}'}: "
                    f"give one that goes with these settings, or leave {leave} out"
                )
        knows_no_null_label = checkpoint.identity.get("label_dropout") == 0 and key not in measured
        if knows_no_null_label and parts.guidance is not None and parts.guidance.uses_null_label:
            raise CheckpointError(
                f"{key} = {path} was trained with label_dropout = 0 and has no null label, which guidance = "
                "classifier_free needs: give one trained with label_dropout=0.1, or set guidance.weight=1"
            )
        return checkpoint.load_into(module, f"{key} = {path}")

    values, num_classes = config.model_dump(), parts.denoiser.num_classes
    network = select(values, lambda what: what & NETWORK)
    del network["conditional"]
    network |= {"num_classes": num_classes, "data_shape": list(parts.denoiser.data_shape)}

    @cache
    def trained(with_labels: bool = False) -> Identity:
        """What determines a fit besides its network; it reads the data, which given checkpoints can do without."""
        found = {"format": FORMAT} | select(values, lambda what: what & TRAINING)
        found["data"] |= parts.data.identity()  # the content of the files
        dropout = found.pop("label_dropout")  # affects only class-conditional networks
        return found | ({} if num_classes is None or not with_labels else {"label_dropout": dropout})

    mean = variance = classifier = None
    if parts.trains_mean and list(parts.denoiser.parameters()):
        loaded = load("mean_ckpt", parts.denoiser, network, dict.fromkeys(network, ""))
        mean = network | trained(True) if loaded is None else loaded.identity
    if parts.guidance is not None and parts.guidance.classifier is not None:
        asked = {"guidance.classifier": config.guidance["classifier"], "schedule": config.schedule}
        loaded = load("classifier_ckpt", parts.guidance.classifier, asked, dict.fromkeys(asked, ""))
        classifier = asked | trained() if loaded is None else loaded.identity
    if parts.strategy.needs_fit:
        asked = {"mean": network if mean is None else identity_key(mean), "var": config.var}
        problems = {"mean": "fitted to another mean network", "var": "fitted to other settings of var"}
        loaded = load("var_ckpt", parts.strategy, asked, problems)
        own = {key: getattr(config, key) for key in ("variance_steps", "variance_lr")}
        variance = asked | trained(True) | own if loaded is None else loaded.identity
    for key, kind in CHECKPOINTS.items():
        if (path := getattr(config, key)) is not None and kind not in given:
            raise must(key, f"left out where no {kind} is fitted", path, f"leave {key} out")
    if mean is not None and "mean" not in given:
        warn_if_amplified(parts.denoiser)
    return FitPlan(mean, variance, classifier, given)


def warn_if_amplified(denoiser: Denoiser) -> None:
    """Warn if the first step multiplies a network's error, and nothing clips its prediction: samples are then noise."""
    factor = float(denoiser.parameterization.c_out(denoiser.levels(torch.ones((), dtype=torch.float64))).abs())
    if factor > AMPLIFIED and not denoiser.data_range.is_bounded and any(True for _ in denoiser.parameters()):
        log.warning(
            "parameterization = %s multiplies the network's error at t = 1 by %.0f on this schedule, and data of "
            "unknown range are not clipped: set parameterization=v",
            type(denoiser.parameterization).__name__.lower(),
            factor,
        )


def _own(config: Config, kind: Kind) -> Path | None:
    """Where the run that a job is based on keeps its weights; None if the job is a run itself.

    A network that comes with the package has several variances, each under the name of its option.
    """
    if config.run is None:
        return None
    folder = Path(config.run) / "checkpoints"
    named = folder / f"{config.choices['var']}.safetensors"
    return named if kind == "variance" and named.is_file() else folder / f"{kind}.safetensors"


def _check_training(config: Config, checkpoint: Checkpoint, path: str | Path) -> None:
    """Refuse a mean network in the folder of a run that was trained in another way than the run's config says.

    Raises:
        CheckpointError: naming the first difference.
    """
    values = Saved.read(Path(str(config.run))).values
    if values.get("mean_ckpt") is not None or checkpoint.identity.get("format") != FORMAT:
        return
    ours = select(values, lambda what: what & TRAINING)
    for name in sorted((ours.keys() & checkpoint.identity.keys()) - {"data", "label_dropout"}):
        if checkpoint.identity[name] != ours[name]:
            differing = difference(name, checkpoint.identity[name], ours[name])
            raise CheckpointError(
                f"{path} must be of run = {config.run} (got one trained with {differing}): give mean_ckpt={path} if it "
                "is the one that you mean"
            )


def _was_fitted(config: Config, kind: Kind) -> bool:
    """Whether the run that a job is based on had weights that it does not have now."""
    return kind == "mean" or (kind == "variance" and config.var == Saved.read(Path(str(config.run))).values["var"])


def _not_of_the_run(config: Config, parts: Parts, kind: Kind) -> ConfigError:
    key, done, do = (
        ("var", "fitted", "fit it") if kind == "variance" else ("guidance", "trained", "train its classifier")
    )
    mean = f"mean_ckpt={config.mean_ckpt or _own(config, 'mean')}"
    if not parts.trains_mean:
        mean = f"model={config.choices['model']} model.source={config.model['source']}"
    return ConfigError(
        f"{key} = {config.choices[key]} was not {done} in run = {config.run}: {do} with "
        f"train.py {key}={config.choices[key]} {mean}, then give that run"
    )
