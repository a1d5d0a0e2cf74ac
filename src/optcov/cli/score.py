"""The scores of a run: samples are drawn if a metric wants them, and not otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from optcov.cli.build import Parts, reference_of
from optcov.cli.errors import refusals
from optcov.cli.run_folder import choices
from optcov.cli.trainer import computing, make_trainer, root_device
from optcov.files import write_atomically
from optcov.metric import FrechetDistance, Metric, ModelMetric, Score, update_all, with_count


@dataclass
class Scores:
    """Values by name, their standard errors and references where there are, and the names of those better large."""

    values: dict[str, float] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    higher_is_better: list[str] = field(default_factory=list)

    def add(self, name: str, score: Score, higher_is_better: bool, folder: Path) -> None:
        """Take a score; its details go to a file of their own in ``folder``."""
        self.values[name] = score.value
        if score.standard_error is not None:
            self.standard_errors[name] = score.standard_error
        if higher_is_better:
            self.higher_is_better.append(name)
        if score.details:
            write_atomically(folder / f"{name}.json", json.dumps(score.details, indent=1) + "\n")


def wants_samples(parts: Parts) -> bool:
    """Whether a metric of the run looks at samples."""
    return any(isinstance(metric, Metric) for metric in parts.metrics.values())


def score_samples(
    cfg: DictConfig, parts: Parts, chunks: Iterable[Tensor], count: int, folder: Path, scores: Scores
) -> None:
    """Score samples, on the device of the trainer; features that several metrics want are computed once.

    What samples are compared with is made ready before the first chunk is asked for.

    Args:
        chunks: uint8 ``[b, *data_shape]``, all samples in order.
        count: of all samples.
        folder: of the run.
        scores: to which each score is added, with the number of samples in its name.
    """
    metrics = [metric for metric in parts.metrics.values() if isinstance(metric, Metric)]
    device = root_device(cfg)
    with refusals("metric"):
        reference = reference_of(cfg, parts.data)
        # a Frechet distance takes its statistics from features that were left by others
        for metric in sorted(metrics, key=lambda metric: isinstance(metric, FrechetDistance)):
            metric.to(device).refer_to(reference)
            metric.reset()
        seen = 0
        for chunk in chunks:
            update_all(metrics, chunk)
            seen += len(chunk)
        if seen != count:
            raise ValueError(f"{seen} samples arrived of num_samples = {count}: run again")
        for metric in metrics:
            compared_with = metric.compared_with(f"{choices()['data']} train ({len(reference.images)})")
            for name, score in metric.compute().items():
                scores.add(with_count(name, count), score, metric.higher_is_better, folder)
                if compared_with is not None:
                    scores.references[with_count(name, count)] = compared_with


def score_model(cfg: DictConfig, parts: Parts, folder: Path, scores: Scores) -> None:
    """Score the model on data, by each metric's key in the config; its details go to a file in ``folder``."""
    trainer = make_trainer(cfg)
    for key, metric in parts.metrics.items():
        if isinstance(metric, ModelMetric):
            with refusals(f"metric.{key}"), computing(trainer) as device:
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
            name = with_count(f"{key}_{metric.split}", len(images))
            scores.add(name, score, metric.higher_is_better, folder)
