"""The files of covbench: the cells as JSON, tidy rows as CSV, tables in Markdown, and a page.

A tidy row has the keys

    task, version, planted, estimator     which cell it is of
    score, t or steps                     what was measured, and at which time or for how many steps of a path
    value, standard_error                 over points or paths; no error where a score is no mean
    points, path_points, seed             of the measurement
    optcov, commit, torch, machine        with which, and on what, it was measured
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optcov.errors import must
from optcov.files import write_atomically
from optcov.foreign import DamagedError, cell, markdown, plotted, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = dict[str, Any]
Row = dict[str, Any]

LARGEST_FILE = 1 << 26  # bytes of a file of cells
WHICH = ("task", "version", "planted", "estimator")
WHERE = ("points", "path_points", "seed", "optcov", "commit", "torch", "machine")
KEYS = (*WHICH, "score", "t", "steps", "value", "standard_error", *WHERE)
MEANS = ("diagonal", "frobenius", "excess", "c50", "c90", "c95", "residual")
COLUMNS: dict[str, Callable[[Cell], float]] = {  # of a table: what a column is called, and its value of a cell
    "diagonal": lambda each: mean(each, "diagonal"),
    "frobenius": lambda each: mean(each, "frobenius"),
    "excess": lambda each: mean(each, "excess"),
    "50 %": lambda each: mean(each, "c50"),
    "90 %": lambda each: mean(each, "c90"),
    "95 %": lambda each: mean(each, "c95"),
    "residual": lambda each: mean(each, "residual"),
    "path 8": lambda each: path(each).get(8, math.nan),
    "path 32": lambda each: path(each).get(32, math.nan),
    "path 128": lambda each: path(each).get(128, math.nan),
    "slope": lambda each: each.get("slope", math.nan),
    "ne": lambda each: each["times"][0]["ne"],
}
SMALLEST_IS_BEST = ("diagonal", "frobenius", "excess", "path 8", "path 32", "path 128")
YARDSTICKS = ("exact", "exact_diagonal")


def read(folder: Path) -> list[Cell]:
    """The cells in a folder; none where there is no file.

    Raises:
        ConfigError: if the file is damaged.
    """
    return read_cells(folder / "covbench.json", set(WHICH))


def write_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Write ``covbench.json``, a cell a line."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "covbench.json", json_of_cells(cells))


def read_cells(path: Path, keys: Set[str]) -> list[Cell]:
    """The cells in a file; none where there is no file.

    Args:
        path: what `json_of_cells` returned, in a folder that the user names ``output``.
        keys: that each cell must have.
    Raises:
        ConfigError: if the file is damaged.
    """
    if not path.exists():
        return []
    try:
        cells = list(_finite(read_json(path, LARGEST_FILE), _decoded)["cells"])
        assert all(keys <= each.keys() for each in cells)
    except (DamagedError, KeyError, TypeError, AttributeError, AssertionError) as error:
        remedy = "delete it, or choose another folder"
        raise must("output", f"a folder whose {path.name} is whole", f"{path.parent}: {error}", remedy) from error
    return cells


def json_of_cells(cells: Iterable[Cell]) -> str:
    """The content of a file of cells, a cell a line."""
    lines = ",\n".join(json.dumps(_finite(each, _encoded), allow_nan=False) for each in cells)
    return f'{{"cells": [\n{lines}\n]}}\n'


def csv_of(keys: Sequence[str], rows: Iterable[Row]) -> str:
    """Rows as CSV, with foreign text made harmless; empty where a row has None, or no such key."""
    text = io.StringIO()
    lines = csv.DictWriter(text, keys, lineterminator="\n")
    lines.writeheader()
    for row in rows:
        lines.writerow({key: "" if row.get(key) is None else cell(row[key]) for key in keys})
    return text.getvalue()


def _finite(content: Any, change: Callable[[Any], Any]) -> Any:
    """Content with its plain values changed."""
    if isinstance(content, Mapping):
        return {key: _finite(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value, change) for value in content]
    return change(content)


def _encoded(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value


def rows_of(cells: Iterable[Cell]) -> list[Row]:
    """Tidy rows, as in the docstring of this module."""
    found = []
    for each in cells:
        common = {key: each[key] for key in (*WHICH, *WHERE)}
        for score, t, steps, value, error in _values(each):
            own = {"score": score, "t": t, "steps": steps, "value": value, "standard_error": error}
            found.append({key: (common | own)[key] for key in KEYS})
    return found


def _values(each: Cell) -> Iterable[tuple[str, float | None, int | None, float, float | None]]:
    """Score, time, steps, value and standard error."""
    for at in each["times"]:
        for name in MEANS:
            yield name, at["t"], None, *at[name]
        for bin_, share in enumerate(at["pit"]):
            yield f"pit_{bin_}", at["t"], None, share, None
        for name in ("ne", "seconds"):
            yield name, at["t"], None, at[name], None
    for name in ("path_excess", "floor"):
        for steps, (value, error) in each.get(name, {}).items():
            yield name, None, int(steps), value, error
    for name in ("slope", "fit_seconds", "score_seconds"):
        if name in each:
            yield name, None, None, each[name], None


def mean(each: Cell, score: str) -> float:
    """The mean of a score over times."""
    return float(sum(at[score][0] for at in each["times"]) / len(each["times"]))


def path(each: Cell) -> dict[int, float]:
    """The divergence of the path for each number of steps, in nats; empty where it was not measured."""
    return {int(steps): value + each["floor"][steps][0] for steps, (value, _) in each.get("path_excess", {}).items()}


def label(each: Cell) -> str:
    """The name of a cell's task, such as ``digits_mixture/v1/planted``."""
    return f"{each['task']}/{each['version']}" + ("/planted" if each["planted"] else "")


def by_task(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells of each task."""
    found: dict[str, list[Cell]] = {}
    for each in cells:
        found.setdefault(label(each), []).append(each)
    return found


def table(
    cells: list[Cell], columns: Iterable[str] = COLUMNS
) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """The table of a task: its columns, and the name and cells of each row with whether they are the best.

    Args:
        cells: of one task.
        columns: keys of `COLUMNS`.
    """
    names = list(columns)
    values = {each["estimator"]: [COLUMNS[name](each) for name in names] for each in cells}
    rivals = [row for name, row in values.items() if name not in YARDSTICKS]
    best = [min((row[i] for row in rivals if math.isfinite(row[i])), default=None) for i in range(len(names))]
    rows = []
    for name, row in values.items():
        good = [
            column in SMALLEST_IS_BEST and value == least and name not in YARDSTICKS
            for column, value, least in zip(names, row, best, strict=True)
        ]
        rows.append((name, list(zip(map(_shown, row), good, strict=True))))
    return names, rows


def _shown(value: float) -> str:
    if math.isnan(value):
        return ""
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


def to_markdown(cells: list[Cell], columns: Iterable[str] = COLUMNS) -> str:
    """The table of a task in Markdown; the best of a column is bold."""
    names, rows = table(cells, columns)
    lines = ["| C | " + " | ".join(names) + " |", "|:--" * (len(names) + 1) + "|"]
    for name, row in rows:
        texts = [f"**{text}**" if best else text for text, best in row]
        lines.append(f"| `{markdown(name)}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def write_report(folder: Path, cells: list[Cell]) -> None:
    """Write ``covbench.csv``, tables as ``covbench.md``, and ``report.html``."""
    from optcov.report.page import inlined, rendered

    write_atomically(folder / "covbench.csv", csv_of(KEYS, rows_of(cells)))
    sections = []
    for name, own in by_task(cells).items():
        picture = io.BytesIO()
        _plot(own).savefig(picture, dpi=110)
        sections.append({"name": name, "table": table(own), "picture": inlined(picture.getvalue())})
    tables = [f"### {markdown(name)}\n\n{to_markdown(own)}\n" for name, own in by_task(cells).items()]
    write_atomically(folder / "covbench.md", "\n".join(tables))
    facts = {key: ", ".join(dict.fromkeys(str(each[key]) for each in cells)) for key in WHERE}
    seconds = sum(each["fit_seconds"] + each["score_seconds"] for each in cells)
    facts["seconds of a processor"] = f"{seconds:.0f}"
    html = rendered("optcov.covbench", title="covbench", sections=sections, facts=facts)
    write_atomically(folder / "report.html", html)


def _plot(cells: list[Cell]) -> Figure:
    """Excess against time, and the divergence of paths against steps, of one task."""
    from matplotlib.figure import Figure

    from optcov.report.plot import MARKERS, legend_below

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, each in enumerate(cells):
        style: dict[str, Any] = {"color": f"C{i % 10}", "marker": MARKERS[(i + i // 10) % 10], "markersize": 4}
        excess = {at["t"]: at["excess"][0] for at in each["times"]}
        for axes, values in ((left, excess), (right, path(each))):
            kept = {x: y for x, y in values.items() if 1e-9 < y < math.inf}  # what a logarithmic axis shows
            axes.plot(list(kept), list(kept.values()), label=plotted(each["estimator"]), **style)
    left.set(xlabel="t", ylabel="excess, nats per dimension")
    right.set(xlabel="steps", ylabel="divergence of the path, nats", xscale="log")
    for axes in (left, right):
        if any(len(line.get_xdata()) for line in axes.lines):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    legend_below(figure)
    return figure
