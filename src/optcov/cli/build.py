"""From a config to the objects it names, every refusal before anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from optcov.cli.errors import refusals
from optcov.data import DataModule
from optcov.denoiser import Denoiser
from optcov.metric import Metric, ModelMetric, Reference
from optcov.sampler import Sampler
from optcov.seeds import derive_seed
from optcov.trajectory import Trajectory
from optcov.variance.base import VarianceStrategy


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    data: DataModule
    denoiser: Denoiser
    strategy: VarianceStrategy
    sampler: Sampler
    trajectory: Trajectory
    metrics: dict[str, Metric | ModelMetric]

    @cached_property
    def times(self) -> Tensor:
        """The times of the trajectory; to be asked for once variance and trajectory are fitted."""
        with refusals("trajectory"):
            return self.trajectory.times(self.denoiser.schedule, self.sampler.num_steps)


def reference_of(cfg: DictConfig, data: DataModule) -> Reference:
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
    for name, metric in metrics.items():
        with refusals(f"metric.{name}"):
            if isinstance(metric, ModelMetric):
                metric.images(data)
            else:
                metric.check(reference_of(cfg, data), cfg.num_samples)
    with refusals("model"):
        torch.manual_seed(derive_seed(cfg.seed, 0))
        network = instantiate(cfg.model, data_shape=shape)
        if cfg.compile:
            network.compile()
        denoiser = Denoiser(network, schedule, cfg.parameterization, cfg.time_offset)
    with refusals("var"):
        torch.manual_seed(derive_seed(cfg.seed, 1))
        strategy = instantiate(cfg.var, denoiser=denoiser)
    with refusals("sampler"):
        sampler.check(strategy)
    with refusals("optimizer"):
        instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    with refusals("callbacks"):
        for callback in cfg.callbacks.values():
            instantiate(callback)
    return Parts(data, denoiser, strategy, sampler, trajectory, metrics)
