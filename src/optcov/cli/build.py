"""From a config to the objects it names, every refusal before anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object, instantiate

from optcov.cli.errors import ConfigError, config_errors
from optcov.denoiser import Denoiser
from optcov.keys import Config
from optcov.labels import cycle_labels
from optcov.metric import ModelMetric, Reference
from optcov.parts import Parts
from optcov.seeds import Stream, derive_seed

if TYPE_CHECKING:
    from lightning import Trainer

    from optcov.cli.machine import Machine


@dataclass(frozen=True)
class Run:
    """A job: its checked config, what it is made of, and where it runs; built once."""

    config: Config
    parts: Parts
    machine: Machine

    @property
    def folder(self) -> Path:
        """Where the job leaves what it makes."""
        return Path(self.config.output_dir)

    def trainer(self, **arguments: Any) -> Trainer:
        """Lightning's Trainer of the config, to train or to predict, with no more output than a run wants."""
        from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

        callbacks = arguments.get("callbacks", [])
        settings: dict[str, Any] = {
            "logger": False,
            "inference_mode": False,  # so that a strategy may take gradients while it samples
            "max_epochs": -1,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
            "enable_progress_bar": any(isinstance(each, ProgressBar) for each in callbacks),
        }
        with config_errors("trainer"):
            trainer: Trainer = instantiate(self.config.trainer, **settings | arguments)
        return trainer


def build(config: Config) -> Parts:
    """Instantiate every group; new weights depend on the seed alone.

    PyTorch is needed here but not Lightning, whose import would make a refusal wait for seconds more.

    Raises:
        ConfigError: if parts do not fit together, in one sentence.
    """
    with config_errors("schedule"):
        schedule = instantiate(config.schedule)
    with config_errors("sampler"):
        sampler = instantiate(config.sampler)
        trajectory = instantiate(config.trajectory)
        trajectory.check(schedule, sampler.num_steps)
    metrics = {}
    for name, metric in config.metric.items():
        with config_errors(f"metric.{name}"):
            metrics[name] = instantiate(metric)
    with config_errors("data"):
        data = instantiate(config.data)
        shape = data.data_shape
    with config_errors("conditional" if config.conditional else "guidance"):
        num_classes = data.num_classes if config.conditional or "classifier" in config.guidance else None
    for name, metric in metrics.items():
        with config_errors(f"metric.{name}"):
            if isinstance(metric, ModelMetric):
                metric.images(data)
                if config.conditional:
                    metric.labels(data)
            else:
                metric.check(Reference(data.reference(), config.reference_dir), config.num_samples)
    with config_errors("model"):
        torch.manual_seed(derive_seed(config.seed, Stream.MEAN_WEIGHTS))
        network = instantiate(config.model, data_shape=shape, **_classes_of_network(config, num_classes))
        if config.compile:
            network.compile()
        denoiser = Denoiser(
            network, schedule, instantiate(config.parameterization), config.time_offset, data.data_range
        )
    with config_errors("var"):
        torch.manual_seed(derive_seed(config.seed, Stream.VARIANCE_WEIGHTS))
        strategy = instantiate(config.var, denoiser=denoiser)
    with config_errors("guidance"):
        torch.manual_seed(derive_seed(config.seed, Stream.CLASSIFIER_WEIGHTS))
        guidance = instantiate(config.guidance, denoiser=denoiser, num_classes=num_classes)
        if guidance.uses_null_label and config.label_dropout == 0:
            raise ConfigError(
                "label_dropout = 0 leaves the null label untrained, which guidance = classifier_free wants: "
                "give a share of labels to hide, such as 0.1, or guidance.weight=1"
            )
        for name, metric in metrics.items():
            if guidance.steers and isinstance(metric, ModelMetric):
                raise ConfigError(
                    f"metric = {name} scores the model on images as it was trained, without the guidance of its "
                    "samples: set guidance=none, or another metric"
                )
    with config_errors("sampler"):
        sampler.check(strategy, schedule)
    if config.labels is not None:
        if num_classes is None:
            raise ConfigError(
                f"labels = {config.labels} mean nothing to a model without classes: leave labels out, or set "
                "conditional=true or guidance=classifier"
            )
        with config_errors("labels"):
            cycle_labels(config.labels, num_classes, 0)
    with config_errors("optimizer"):
        instantiate(config.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    with config_errors("callbacks"):
        for callback in config.callbacks.values():
            instantiate(callback)
    return Parts(data, denoiser, strategy, sampler, trajectory, metrics, guidance, config.labels)


def _classes_of_network(config: Config, num_classes: int | None) -> dict[str, int | None]:
    """The argument by which a mean network learns of classes; none for an unconditional one."""
    if "num_classes" in config.model:
        raise ConfigError(
            f"model.num_classes = {config.model['num_classes']} is counted in the data: leave it out and set "
            "conditional=true"
        )
    if not config.conditional:
        return {}
    if "num_classes" not in signature(get_object(config.model["_target_"])).parameters:
        raise ConfigError(
            f"conditional = true needs a mean network that takes num_classes, and {config.model['_target_']} does not: "
            "set model=unet, or conditional=false"
        )
    return {"num_classes": num_classes}
