"""The scores of a run: samples are drawn if a metric wants them, and not otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from optcov.cli.build import Parts
from optcov.cli.errors import refusals
from optcov.cli.fit import make_trainer
from optcov.cli.report import write_atomically
from optcov.metric import Metric, ModelMetric, with_count


@dataclass
class Scores:
    """Values by name, and their standard errors where they are known."""

    values: dict[str, float] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)


def wants_samples(parts: Parts) -> bool:
    """Whether a metric of the run looks at samples."""
    return any(isinstance(metric, Metric) for metric in parts.metrics.values())


def score_samples(parts: Parts, chunks: Iterable[Tensor], count: int, scores: Scores) -> None:
    """Compare samples with the reference of the data.

    Args:
        parts: whose metrics and data are used.
        chunks: uint8 ``[b, *data_shape]``, read once.
        count: how many samples they hold.
        scores: what is added to.
    """
    reference = parts.data.reference()
    metrics = [metric for metric in parts.metrics.values() if isinstance(metric, Metric)]
    with refusals("metric"):
        for metric in metrics:
            metric.update(reference, real=True)
        for chunk in chunks:
            for metric in metrics:
                metric.update(chunk, real=False)
        for metric in metrics:
            scores.values[with_count(metric.name, count)] = metric.compute()


def score_model(cfg: DictConfig, parts: Parts, folder: Path, scores: Scores) -> None:
    """Score the model on data; each metric's details go to a file of its own in ``folder``."""
    trainer = make_trainer(cfg)
    device = trainer.strategy.root_device
    for metric in parts.metrics.values():
        if isinstance(metric, ModelMetric):
            with refusals("metric"), trainer.precision_plugin.forward_context():
                images = metric.images(parts.data)
                labels = None if parts.denoiser.num_classes is None else metric.labels(parts.data)
                score = metric.measure(
                    parts.denoiser.to(device).eval(),
                    parts.strategy.to(device).eval(),
                    parts.times,
                    images,
                    cfg.seed,
                    cfg.sample_batch_size,
                    labels,
                )
            name = with_count(f"{metric.name}_{metric.split}", len(images))
            scores.values[name], scores.standard_errors[name] = score.value, score.standard_error
            write_atomically(folder / f"{name}.json", json.dumps(score.details, indent=1) + "\n")
