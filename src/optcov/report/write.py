"""Writes the files of a report into one folder, and prints what belongs on the terminal."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from optcov.files import write_atomically
from optcov.foreign import LIMIT, cell, file_name, markdown, printable, terminal
from optcov.report.page import page
from optcov.report.picture import first_samples, sample_grid, save_png
from optcov.report.plot import plot, plot_variance
from optcov.report.runs import Run, Runs
from optcov.report.table import Scores, labels, metric_names, scores
from optcov.variance.profile import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
RESERVED = ("variance", "samples")  # names of pictures that do not belong to a metric
LIMIT_OF_PICTURE = 1 << 26  # bytes of the largest picture that is read


def check_comparable(runs: Runs) -> None:
    """Refuse runs that a table cannot compare.

    Raises:
        ValueError: if no run is finished, or there are several and no two share a metric.
    """
    if not runs.ended:
        folder, words = runs.unfinished[0]
        raise ValueError(f"runs must contain a finished run ({folder} is not finished: {words}): give a finished one")
    frame = runs.frame()
    shared = [name for name in metric_names(frame) if frame[name].notna().sum() > 1]
    if len(frame) > 1 and not shared:
        first, second = runs.ended[:2]
        raise ValueError(
            f"runs must have a metric in common ({first.folder} has {_listed(first.results.metrics)}, {second.folder} "
            f"has {_listed(second.results.metrics)}): score them with evaluate.py run=FOLDER metric=... num_samples=N"
        )


def _listed(names: Mapping[str, float]) -> str:
    return " and ".join(names) or "none"


def write_tables(runs: Runs, folder: Path) -> dict[str, Scores]:
    """Write ``table.csv`` with a row for each run, and the scores of each metric as ``table.md`` and ``table.tex``.

    Returns:
        The scores by metric.
    """
    frame = runs.frame()
    write_atomically(folder / "table.csv", frame.map(cell).rename(columns=cell).to_csv(index=False))
    by_metric = {metric: scores(frame, metric) for metric in metric_names(frame) if frame[metric].notna().any()}
    sections = [f"### {markdown(each.heading)}\n\n{each.to_markdown()}\n" for each in by_metric.values()]
    if runs.unfinished:
        lines = [f"- {markdown(runs.name(place))}: {markdown(words)}" for place, words in runs.unfinished]
        sections.append("### Not finished, so not in the tables\n\n" + "\n".join(lines) + "\n")
    write_atomically(folder / "table.md", "\n".join(sections))
    tabulars = [f"% {each.heading}\n% \\usepackage{{booktabs}}\n{each.to_latex()}" for each in by_metric.values()]
    write_atomically(folder / "table.tex", "\n".join(tabulars))
    return by_metric


def write_report(runs: Runs, folder: Path) -> None:
    """Write tables, a plot for each metric, ``variance.png``, ``samples.png`` and ``report.html``; print the tables.

    Args:
        runs: runs from `optcov.report.gather`, of which at least one is finished.
        folder: an existing folder.
    """
    for place, words in runs.unfinished:
        log.warning("%s is not finished and does not appear in the tables (%s)", printable(place), words)
    by_metric = write_tables(runs, folder)
    frame = runs.frame()
    pictures = {}
    for metric, found in by_metric.items():
        pictures[metric] = folder / f"{file_name(metric, RESERVED)}.png"
        plot(frame, metric, pictures[metric])
        Console().print(found.to_terminal())
    if curves := variance_curves(runs, frame):
        pictures["variance"] = folder / "variance.png"
        plot_variance(curves, pictures["variance"])
    if cells := sample_cells(runs, frame):
        pictures["samples"] = folder / "samples.png"
        save_png(sample_grid(cells), pictures["samples"])
    write_atomically(folder / "report.html", page(runs, by_metric, pictures, folder))
    log.info("report: %s", folder / "report.html")


def variance_curves(runs: Runs, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves for the first seed and the fewest steps, by strategy or label; equal curves appear once."""
    import pandas as pd

    order = frame.assign(label=labels(frame)).sort_values(["seed", "num_steps"], kind="stable")
    found: dict[str, tuple[str, str]] = {}  # content of the file -> strategy and label
    for position in order.drop_duplicates("label").index.sort_values():
        content = _sound(runs.ended[position], "variance.csv", LIMIT)
        if content is not None and _is_curve(content, runs.ended[position].folder):
            found.setdefault(content.decode(), (order.loc[position, "var"], order.loc[position, "label"]))
    short = len({var for var, _ in found.values()}) == len(found)
    return {var if short else label: pd.read_csv(StringIO(text)) for text, (var, label) in found.items()}


def _sound(run: Run, name: str, limit: int) -> bytes | None:
    """Read a file in a run's folder, unless its checksum differs from that in the results or it is a link."""
    path = run.folder / name
    if not path.exists():
        return None
    if path.is_file() and not path.is_symlink() and path.stat().st_size <= limit:
        content = path.read_bytes()
        if run.results.files.get(name) in (None, hashlib.sha256(content).hexdigest()):
            return content
    _not_drawn(path)
    return None


def _not_drawn(path: Path) -> None:
    log.warning("%s is damaged, from another version or not a regular file: it is not drawn", printable(path))


def _is_curve(content: bytes, folder: Path) -> bool:
    import numpy as np
    import pandas as pd

    try:
        frame = pd.read_csv(StringIO(content.decode()), dtype="float64")
        if set(COLUMNS) <= set(frame.columns):
            values = frame[list(COLUMNS)].to_numpy()
            if len(values) and np.isfinite(values).all() and (frame[["t", "upper"]].to_numpy() > 0).all():
                return True
    except ValueError:  # raised by pandas, and for text that is not UTF-8
        pass
    _not_drawn(folder / "variance.csv")
    return False


def sample_cells(runs: Runs, frame: pd.DataFrame) -> dict[tuple[str, int], Image.Image]:
    """The first samples for the first seed, by label and number of steps."""
    cells: dict[tuple[str, int], Image.Image] = {}
    first = frame["seed"].min()
    for run, label in zip(runs.ended, labels(frame), strict=True):
        results = run.results
        place = (str(label), results.num_steps)
        if results.seed != first or place in cells or not results.num_samples:
            continue
        content = _sound(run, "samples.png", LIMIT_OF_PICTURE)
        try:
            if content is not None:
                cells[place] = first_samples(BytesIO(content), results.data_shape, labelled=results.labelled)
        except (OSError, ValueError, SyntaxError):  # raised by Pillow for damaged images
            _not_drawn(run.folder / "samples.png")
    return cells


def show_run(results: dict[str, Any]) -> None:
    """Print a run's results as a table on the terminal."""
    table = Table("", terminal(results["var"]), title="optcov", title_justify="left")
    for key in ("data", "model", "schedule", "sampler", "guidance", "trajectory", "num_steps", "nfe", "ne", "seed"):
        if key in results and (key != "guidance" or results[key] != "none"):
            table.add_row(key, terminal(results[key]))
    table.add_section()
    for name, value in results["metrics"].items():
        error = results["standard_errors"].get(name)
        table.add_row(terminal(name), f"[bold]{value:.4g}[/bold]" + ("" if error is None else f" ± {error:.2g}"))
    if "throughput_images_per_s" in results:
        table.add_row("images/s", f"{results['throughput_images_per_s']:.0f}")
    table.add_row("seconds", f"{results['wall_time_s']['total']:.0f}")
    console = Console()
    console.print(table)
    console.print(printable(results["output_dir"]), soft_wrap=True, highlight=False, markup=False)
