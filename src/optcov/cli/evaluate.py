"""Draws the samples of a run on all devices, never holding all in memory, and scores them and the model itself."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from optcov.cli.build import Run
from optcov.cli.check import settings
from optcov.data import DataSource
from optcov.errors import config_errors
from optcov.files import write_atomically
from optcov.metric import Metric, ModelMetric, Reference, Score, refer_all, score_samples, with_count
from optcov.report import picture, plot_variance
from optcov.report.runs import FORMAT
from optcov.run_folder import provenance
from optcov.training import SampleStore, SamplingStage
from optcov.training.sample_store import PARTS, lock_samples, samples_identity
from optcov.training.store import rank_zero
from optcov.variance.profile import num_profile_images, variance_profile

log = logging.getLogger(__name__)


def draw(run: Run, identity: dict[str, Any] | None = None) -> tuple[SampleStore, Tensor | None]:
    """Draw those of the ``num_samples`` samples that are still missing, on all devices, and picture the first of them.

    Args:
        run: a fitted run; its folder keeps the samples until `delete_partial_samples`.
        identity: that of `samples_identity`, where it is known; to hash all weights takes a moment.
    Returns:
        The samples, which only the first process should read, and their labels, if there are any.
    Raises:
        ConfigError: if the folder holds samples of another config, or the network returns NaN.
    """
    config, parts, folder = run.config, run.parts, run.folder
    if rank_zero():
        lock_samples(folder / PARTS, identity or samples_identity(config, parts, run.machine.device))
    shape, dtype = parts.data.sample_shape, parts.data.sample_dtype
    drawn = SampleStore(folder / PARTS, shape, config.num_samples, config.sample_batch_size, dtype)
    labels = parts.labels(drawn.batches[-1].stop, config.seed)
    stage = SamplingStage(
        parts.denoiser,
        parts.strategy,
        parts.sampler,
        parts.times,
        config.seed,
        drawn,
        parts.guidance,
        labels,
        "3/3 sampling",
        parts.data.finish,
    )
    if stage.missing:
        trainer = run.trainer(precision=config.sampling_precision, use_distributed_sampler=False)
        try:
            with config_errors("samples"):
                trainer.predict(stage, return_predictions=False)
        except SystemExit:  # how Lightning ends on Ctrl+C
            place = f"hydra.run.dir={folder}" if config.sweep is None else f"hydra.sweep.dir={config.sweep}"
            raise KeyboardInterrupt(f"3/3 sampling; the same command with {place} continues there") from None
        trainer.strategy.barrier()
    labels = None if labels is None else labels[: len(drawn)]
    if rank_zero():
        preview(drawn, parts.data, folder / "samples.png", labels)
    return drawn, labels


def preview(drawn: SampleStore, data: DataSource, path: Path, labels: Tensor | None = None) -> None:
    """Draw the first samples as one picture: 64 images, with one class per row if labelled, or 10,000 points."""
    count = 10_000 if len(drawn.shape) != 3 else 64 if labels is None else 256  # enough to fill the rows of classes
    picture(data.levels(drawn.first(count)), path, labels=None if labels is None else labels[:count])


def evaluate_run(run: Run) -> dict[str, Any]:
    """Score a fitted run; samples are drawn only if a metric needs them.

    Returns:
        The content of ``results.json``, except the times of fits; empty in processes that do not write.
    """
    config, parts = run.config, run.parts
    results: dict[str, Any] = {
        "format": FORMAT,
        "metrics": {},
        "standard_errors": {},
        "higher_is_better": [],
        **{key: value for key, value in config.choices.items() if key != "metric"},
        "num_steps": parts.sampler.num_steps,
        "times": parts.times.tolist(),
        **{name: values.tolist() for name, values in parts.sampler.measured().items()},
        "seed": config.seed,
        "data_shape": list(parts.data.sample_shape),
        "overrides": {key: value for key, value in settings(config.overrides).items() if key not in config.choices},
        "wall_time_s": {},
        **provenance(),
        "device": run.machine.name,
        "output_dir": str(run.folder),
    }
    if any(isinstance(metric, Metric) for metric in parts.metrics.values()):
        log.info("sampling: %d samples, %d steps", config.num_samples, len(parts.times))
        drawn, labels = draw(run)
        if rank_zero():
            results |= {"reference": {}, "num_samples": len(drawn), "labelled": labels is not None}
            add_scores_of_samples(run, drawn, results)
            seconds = drawn.seconds()
            results["wall_time_s"] = {"sampling": seconds}
            if seconds > 0:  # the clock may have been set back
                results["throughput_images_per_s"] = len(drawn) / seconds
            results |= drawn.cost()
    if not rank_zero():
        return {}
    add_scores_of_model(run, results)
    return results


def add_scores_of_samples(run: Run, drawn: SampleStore, results: dict[str, Any]) -> None:
    """Score samples by the metrics of a run; the references are prepared before the first chunk is read."""
    data = run.parts.data
    metrics = [metric for metric in run.parts.metrics.values() if isinstance(metric, Metric)]
    with config_errors("metric"):
        reference = Reference(data.reference(), run.config.reference_dir)
        refer_all(metrics, reference, run.machine.device)
        for metric, name, score in score_samples(metrics, map(data.levels, drawn), len(drawn)):
            _add(run, results, name, score, metric.higher_is_better)
            compared_with = metric.compared_with(f"{run.config.choices['data']} train ({len(reference.images)})")
            if compared_with is not None:
                results["reference"][name] = compared_with


def add_scores_of_model(run: Run, results: dict[str, Any]) -> None:
    """Score the model on data with each model metric of the config."""
    config, parts = run.config, run.parts
    for key, metric in parts.metrics.items():
        if isinstance(metric, ModelMetric):
            with config_errors(f"metric.{key}"), run.machine.training() as device:
                images = metric.images(parts.data, parts.denoiser.data_range)
                labels = None if parts.denoiser.num_classes is None else metric.labels(parts.data)
                denoiser, strategy = parts.denoiser.to(device).eval(), parts.strategy.to(device).eval()
                how = (config.seed, config.sample_batch_size, labels)
                before = replace(denoiser.cost)
                score = metric.measure(denoiser, strategy, parts.times, images, *how)
                cost = denoiser.cost.since(before)
            if "nfe" not in results:  # where no samples were drawn
                results |= {"nfe": cost.nfe / len(images), "ne": cost.ne / len(images)}
            _add(run, results, with_count(f"{key}_{metric.split}", len(images)), score, metric.higher_is_better)


def _add(run: Run, results: dict[str, Any], name: str, score: Score, higher_is_better: bool) -> None:
    """Add a score to the results, and write its details to a separate file."""
    results["metrics"][name] = score.value
    if score.standard_error is not None:
        results["standard_errors"][name] = score.standard_error
    if higher_is_better:
        results["higher_is_better"].append(name)
    if score.details:
        write_atomically(run.folder / f"{name}.json", json.dumps(score.details, indent=1) + "\n")


def write_variance_profile(run: Run) -> None:
    """Write ``variance.csv`` and ``variance.png``: the variances used in sampling, measured on a few training images.

    Takes seconds.
    """
    import pandas as pd

    parts, folder = run.parts, run.folder
    with run.machine.training() as device:
        images, labels = parts.calibration(num_profile_images(math.prod(parts.denoiser.data_shape)), device)
        for module in parts.modules:
            module.to(device).eval()
        profile = variance_profile(
            parts.denoiser,
            parts.strategy,
            images,
            1 / parts.sampler.num_steps,
            run.config.seed,
            guidance=parts.guidance,
            condition=labels,
        )
    if len(profile["t"]):  # a chain of one step has no times between its ends
        frame = pd.DataFrame({name: values.numpy() for name, values in profile.items()})
        write_atomically(folder / "variance.csv", frame.to_csv(index=False))
        plot_variance({run.config.choices["var"]: frame}, folder / "variance.png")
