"""Builds the objects that a config names, and refuses bad configs before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object, instantiate

from optcov.cli.pretrained import Given, open_pretrained
from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.errors import ConfigError, config_errors, must
from optcov.guidance import Guidance
from optcov.keys import Config
from optcov.labels import cycle_labels
from optcov.metric import Metric, ModelMetric, Reference
from optcov.parameterization import Parameterization
from optcov.parts import Parts
from optcov.sampler import Sampler
from optcov.schedule import NoiseSchedule
from optcov.seeds import Stream, derive_seed
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy

if TYPE_CHECKING:
    from lightning import Trainer

    from optcov.training.machine import Machine


@dataclass(frozen=True)
class Run:
    """A job: its checked config, its objects, and the machine it runs on; built once."""

    config: Config
    parts: Parts
    machine: Machine

    @property
    def folder(self) -> Path:
        """The folder for the job's output."""
        return Path(self.config.output_dir)

    def trainer(self, **arguments: Any) -> Trainer:
        """Make the config's Lightning Trainer, for training or prediction, without unneeded output."""
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

        callbacks = arguments.get("callbacks", [])
        settings: dict[str, Any] = {
            "logger": False,
            "inference_mode": False,  # so that a strategy may take gradients while it samples
            "max_epochs": -1,
            # under SLURM, Lightning loads any hpc_ckpt_*.ckpt it finds there; the default is the working folder
            "default_root_dir": self.folder,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
            "enable_progress_bar": any(isinstance(each, ProgressBar) for each in callbacks),
        }
        if SLURMEnvironment.detect():
            # Lightning's own way to requeue starts in the middle of a step
            settings["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        with config_errors("trainer"):
            trainer: Trainer = instantiate(self.config.trainer, **settings | arguments)
        return trainer


def assemble(task: str, config: Config) -> tuple[Config, Parts]:
    """Build what a config names; of a given mean network, the config also gets what the network says of itself.

    This needs PyTorch but not Lightning, whose import would delay a refusal by seconds.

    Args:
        task: ``train``, ``sample`` or ``evaluate``; ``sample`` scores nothing, so that nothing for it must exist.
        config: a checked config of the task.
    Raises:
        ConfigError: as in `build`, or if the given network cannot be used.
    """
    if task == "sample":
        config = config.model_copy(update={"metric": {}})
    given = open_pretrained(config)
    config = config if given is None else given.config
    return config, build(config, given)


def build(config: Config, given: Given | None = None) -> Parts:
    """Instantiate every group; initial weights depend only on the seed.

    Args:
        config: checked; that of ``given``, where a mean network is given.
        given: a mean network that was not trained here, and the data it was opened with.
    Raises:
        ConfigError: if parts do not fit together; the message is one sentence.
    """
    with config_errors("schedule"):
        schedule = _made(NoiseSchedule, "schedule", config.schedule)
    with config_errors("sampler"):
        sampler = _made(Sampler, "sampler", config.sampler)
        trajectory = _made(Trajectory, "trajectory", config.trajectory)
        trajectory.check(schedule, sampler.num_steps)
    metrics = {}
    for name, metric in config.metric.items():
        with config_errors(f"metric.{name}"):
            metrics[name] = _made((Metric, ModelMetric), f"metric.{name}", metric)
    with config_errors("data"):
        data = _made(DataSource, "data", config.data) if given is None else given.data
        if config.run is None:
            data.train  # noqa: B018 (opens the data, which may be refused; a run that exists may do without)
    with config_errors("conditional" if config.conditional else "guidance"):
        num_classes = data.num_classes if config.conditional or "classifier" in config.guidance else None
    for name, metric in metrics.items():
        with config_errors(f"metric.{name}"):
            if isinstance(metric, ModelMetric):
                metric.images(data, data.data_range)
                if config.conditional:
                    metric.labels(data)
            else:
                metric.check(Reference(data.reference(), config.reference_dir), config.num_samples)
    with config_errors("model"):
        denoiser = _new(config, schedule, data, num_classes) if given is None else given.denoiser
        if config.compile:
            denoiser.network.compile()
    with config_errors("var"):
        torch.manual_seed(derive_seed(config.seed, Stream.VARIANCE_WEIGHTS))
        strategy = _made(VarianceStrategy, "var", config.var, denoiser=denoiser)
    with config_errors("guidance"):
        torch.manual_seed(derive_seed(config.seed, Stream.CLASSIFIER_WEIGHTS))
        guidance = _made(Guidance, "guidance", config.guidance, denoiser=denoiser, num_classes=num_classes)
        guidance.check(strategy)
        guidance.check_count(config.num_samples)
        if guidance.uses_null_label and config.label_dropout == 0:
            raise ConfigError(
                "label_dropout must be above 0 for guidance = classifier_free (got 0), which needs a trained null "
                "label: set label_dropout=0.1, or guidance.weight=1"
            )
        for name, metric in metrics.items():
            if guidance.steers and isinstance(metric, ModelMetric):
                raise ConfigError(
                    f"guidance must be none for metric = {name} (got {type(guidance).__name__}), which scores the "
                    "model without guidance: set guidance=none, or another metric"
                )
    with config_errors("sampler"):
        sampler.check(strategy, schedule)
    if config.labels is not None:
        if num_classes is None:
            raise ConfigError(
                f"labels must be null for a model without classes (got {config.labels}): leave labels out, or set "
                "conditional=true or guidance=classifier"
            )
        with config_errors("labels"):
            cycle_labels(config.labels, num_classes, 0)
    if config.run is None:  # a run that exists trains nothing
        with config_errors("optimizer"):
            instantiate(config.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    return Parts(data, denoiser, strategy, sampler, trajectory, metrics, guidance, config.labels, given is None)


def _made(kind: Any, key: str, node: dict[str, Any], **arguments: Any) -> Any:
    """The object of a node, which must be of the kind that its place in the config asks for."""
    found = instantiate(node, **arguments)
    if not isinstance(found, kind):
        names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise must(f"{key}._target_", f"a {names}", node["_target_"], f"leave it out, or give {key}=OPTION")
    return found


def _new(config: Config, schedule: NoiseSchedule, data: DataSource, num_classes: int | None) -> Denoiser:
    """Make the denoiser of a network to be trained."""
    torch.manual_seed(derive_seed(config.seed, Stream.MEAN_WEIGHTS))
    classes = _classes_of_network(config, num_classes)
    network = _made(torch.nn.Module, "model", config.model, data_shape=data.data_shape, **classes)
    parameterization = _made(Parameterization, "parameterization", config.parameterization)
    return Denoiser(network, schedule, parameterization, config.time_offset, data.data_range)


def _classes_of_network(config: Config, num_classes: int | None) -> dict[str, int | None]:
    """The argument that makes a mean network class-conditional; empty for an unconditional network."""
    if "num_classes" in config.model:
        raise ConfigError(
            f"model.num_classes must be left out (got {config.model['num_classes']}), because it is counted in the "
            "data: set conditional=true"
        )
    if not config.conditional:
        return {}
    if "num_classes" not in signature(get_object(config.model["_target_"])).parameters:
        raise ConfigError(
            f"model must take num_classes for conditional = true (got {config.model['_target_']}, which does not): "
            "set model=unet, or conditional=false"
        )
    return {"num_classes": num_classes}
