"""From a config to the objects it names, every refusal before anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from optcov.cli.errors import ConfigError, refusals
from optcov.data import DataSource
from optcov.denoiser import Denoiser
from optcov.guidance import Guidance
from optcov.labels import cycle_labels, draw_labels
from optcov.metric import Metric, ModelMetric, Reference
from optcov.sampler import Sampler
from optcov.seeds import Stream, derive_seed
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    data: DataSource
    denoiser: Denoiser
    strategy: VarianceStrategy
    sampler: Sampler
    trajectory: Trajectory
    metrics: dict[str, Metric | ModelMetric]
    guidance: Guidance | None = None
    classes: int | list[int] | None = None  # wanted, in turn; None for as often as in the data

    @property
    def num_classes(self) -> int | None:
        """Of samples; None where nothing asks for labels."""
        guided = self.guidance is not None and self.guidance.classifier is not None
        return self.data.num_classes if guided else self.denoiser.num_classes

    def labels(self, count: int, seed: int) -> Tensor | None:
        """The class of each of ``count`` samples, int64; None where nothing asks for labels."""
        if self.num_classes is None:
            return None
        if self.classes is not None:
            return cycle_labels(self.classes, self.num_classes, count)
        return draw_labels(self.data.labels("train").bincount(minlength=self.num_classes), count, seed)

    @property
    def modules(self) -> list[nn.Module]:
        """What holds weights: the denoiser, the strategy, and the guidance if there is any."""
        return [module for module in (self.denoiser, self.strategy, self.guidance) if module is not None]

    def calibration(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """``count`` training samples, ready for a network, and their labels where the mean network knows classes."""
        clean = self.data.calibration(count).to(device)
        return clean, None if self.denoiser.num_classes is None else self.data.calibration_labels(count).to(device)

    def bound(self, labels: Tensor | None) -> tuple[Denoiser, VarianceStrategy]:
        """Denoiser and strategy for samples of these classes, under guidance."""
        return (self.guidance or Guidance(self.denoiser)).bind(self.denoiser, self.strategy, labels)

    @cached_property
    def times(self) -> Tensor:
        """The times of the trajectory; to be asked for once variance and trajectory are fitted."""
        with refusals("trajectory"):
            return self.trajectory.times(self.denoiser.schedule, self.sampler.num_steps)


def reference_of(cfg: DictConfig, data: DataSource) -> Reference:
    """The training images, with what metrics keep of them in the cache of the config."""
    return Reference(data.reference(), Path(cfg.cache_dir) / "reference")


def build(cfg: DictConfig) -> Parts:
    """Instantiate every group; new weights depend on the seed alone.

    Raises:
        ConfigError: if parts do not fit together, in one sentence.
    """
    with refusals("schedule"):
        schedule = instantiate(cfg.schedule)
    with refusals("sampler"):
        sampler = instantiate(cfg.sampler)
        trajectory = instantiate(cfg.trajectory)
        trajectory.check(schedule, sampler.num_steps)
    metrics = {}
    for name, metric in cfg.metric.items():
        with refusals(f"metric.{name}"):
            metrics[name] = instantiate(metric)
    with refusals("data"):
        data = instantiate(cfg.data)
        shape = data.data_shape
    with refusals("conditional" if cfg.conditional else "guidance"):
        num_classes = data.num_classes if cfg.conditional or "classifier" in cfg.guidance else None
    for name, metric in metrics.items():
        with refusals(f"metric.{name}"):
            if isinstance(metric, ModelMetric):
                metric.images(data)
                if cfg.conditional:
                    metric.labels(data)
            else:
                metric.check(reference_of(cfg, data), cfg.num_samples)
    with refusals("model"):
        torch.manual_seed(derive_seed(cfg.seed, Stream.MEAN_WEIGHTS))
        network = instantiate(cfg.model, data_shape=shape, **_classes_of_network(cfg, num_classes))
        if cfg.compile:
            network.compile()
        denoiser = Denoiser(network, schedule, cfg.parameterization, cfg.time_offset)
    with refusals("var"):
        torch.manual_seed(derive_seed(cfg.seed, Stream.VARIANCE_WEIGHTS))
        strategy = instantiate(cfg.var, denoiser=denoiser)
    with refusals("guidance"):
        torch.manual_seed(derive_seed(cfg.seed, Stream.CLASSIFIER_WEIGHTS))
        guidance = instantiate(cfg.guidance, denoiser=denoiser, num_classes=num_classes)
        if guidance.uses_null_label and cfg.label_dropout == 0:
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
    with refusals("sampler"):
        sampler.check(strategy)
    with refusals("optimizer"):
        instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    with refusals("callbacks"):
        for callback in cfg.callbacks.values():
            instantiate(callback)
    classes: int | list[int] | None = list(cfg.labels) if isinstance(cfg.labels, ListConfig) else cfg.labels
    if classes is not None:
        if num_classes is None:
            raise ConfigError(
                f"labels = {classes} mean nothing to a model without classes: leave labels out, or set "
                "conditional=true or guidance=classifier"
            )
        with refusals("labels"):
            cycle_labels(classes, num_classes, 0)
    return Parts(data, denoiser, strategy, sampler, trajectory, metrics, guidance, classes)


def _classes_of_network(cfg: DictConfig, num_classes: int | None) -> dict[str, int | None]:
    """The argument by which a mean network learns of classes; none for an unconditional one."""
    if "num_classes" in cfg.model:
        raise ConfigError(
            f"model.num_classes = {cfg.model.num_classes} is counted in the data: leave it out and set conditional=true"
        )
    if not cfg.conditional:
        return {}
    if "num_classes" not in signature(get_object(cfg.model._target_)).parameters:
        raise ConfigError(
            f"conditional = true wants a mean network that takes num_classes, which {cfg.model._target_} does not: "
            "set model=unet, or conditional=false"
        )
    return {"num_classes": num_classes}
