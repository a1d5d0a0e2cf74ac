"""The report as a single, self-contained HTML page without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from optcov.foreign import link, printable
from optcov.keys import is_label
from optcov.report.runs import Runs
from optcov.report.table import Scores, labels

CAPTIONS = {
    "variance": "Left: the covariance of x_0 at time t by strategy, on a few training images, with the run's guidance; "
    "a covariance of zero, such as beta_tilde's, does not appear on the logarithmic axis. Right: the variance of the "
    "resulting step, for the fewest steps of any run. Dashed: the bounds of Analytic-DPM, Theorem 2, for data in "
    "[-1, 1].",
    "samples": "Samples of the first seed; class-conditional models have a row for each class. A sample has the same "
    "noise in all cells with the same sampler and the same classes.",
}


def page(runs: Runs, by_metric: Mapping[str, Scores], pictures: Mapping[str, Path], folder: Path) -> str:
    """Render the page as HTML.

    Args:
        runs: the runs to report.
        by_metric: scores by metric.
        pictures: PNG files by metric, and under ``variance`` and ``samples`` if these exist.
        folder: the page's folder, to which its links are relative.
    """
    frame = runs.frame()
    settings = frame.iloc[:, 1 : frame.columns.get_loc("nfe")].drop(columns=["num_steps"])
    same = {str(key): settings[key].iloc[0] for key in settings if settings[key].nunique(dropna=False) == 1}
    facts: dict[str, Any] = {}
    for name in ("reference", "num_samples", "git_revision", "device", "versions"):
        values = list(dict.fromkeys(_said(getattr(run.results, name)) for run in runs.ended))
        facts[name.replace("_", " ")] = " | ".join(filter(None, values))
    sections = [
        {"name": name, "scores": _cells(each), "picture": inlined(pictures[name].read_bytes())}
        for name, each in by_metric.items()
    ]
    rows = []
    for run, label in zip(runs.ended, labels(frame), strict=True):
        results = run.results
        scored = {name: _with_error(results.metrics, results.standard_errors, name) for name in by_metric}
        rows.append(
            {
                "link": link(run.folder, folder),
                "name": runs.name(run.folder),
                "label": label,
                "cells": [results.num_steps, results.nfe, _rounded(results.ne), results.seed, *scored.values()],
                "throughput": _rounded(results.throughput_images_per_s),
                "seconds": _rounded(results.wall_time_s.get("total")),
            }
        )
    return rendered(
        "optcov.report",
        title=folder.resolve().name,
        count=len(runs.ended),
        seeds=sorted({run.results.seed for run in runs.ended}),
        same={key: value for key, value in same.items() if value not in (None, "None") and is_label(key)},
        facts={key: value for key, value in facts.items() if value},
        sections=sections,
        others=[(name, inlined(pictures[name].read_bytes()), CAPTIONS[name]) for name in CAPTIONS if name in pictures],
        metrics=list(by_metric),
        rows=rows,
        unfinished=[(link(place, folder), runs.name(place), words) for place, words in runs.unfinished],
    )


def rendered(package: str, **values: Any) -> str:
    """Render the ``page.html`` of a package, which extends ``base.html`` of this one; what is given is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("optcov.report", ".")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not what a macro made
    )
    return environment.get_template("page.html").render(values)


def _cells(scores: Scores) -> dict[str, Any]:
    text = scores.text
    rows = [(label, list(zip(text.loc[label], scores.best.loc[label], strict=True))) for label in text.index]
    return {"heading": scores.heading, "columns": list(text.columns), "rows": rows}


def inlined(content: bytes) -> dict[str, Any]:
    """A picture for a page that needs no other file: its source and width."""
    with Image.open(BytesIO(content)) as opened:
        width = opened.width
    return {"source": "data:image/png;base64," + base64.b64encode(content).decode(), "width": width}


def _with_error(values: Mapping[str, float], errors: Mapping[str, float], name: str) -> str:
    if name not in values:
        return ""
    return f"{values[name]:.4g}" + (f" ± {errors[name]:.2g}" if name in errors else "")


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {said}" for key, said in value.items())
    return "" if value is None else str(value)
