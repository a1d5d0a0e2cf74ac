"""Runs covbench cell by cell: a cell is an estimator on a task, and one that is on disk is not measured again."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from optcov.covbench import scores
from optcov.covbench.estimators import ESTIMATORS, Estimator, estimator_of, made
from optcov.covbench.tasks import TASKS, Bench, Task, task_of
from optcov.covbench.truths import Unavailable
from optcov.covbench.write import Cell, read, rows_of, write_cells, write_report
from optcov.errors import must
from optcov.run_folder import provenance

log = logging.getLogger(__name__)

POINTS, PATH_POINTS = 32, 16
MOST_NE = 4  # network equivalents of a C, above which its path is left out


def run(
    tasks: Iterable[str] | None = None,
    estimators: Iterable[str] | Mapping[str, Estimator] | None = None,
    *,
    output: str | Path | None = None,
    points: int = POINTS,
    path_points: int = PATH_POINTS,
    seed: int = 0,
    fresh: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Score estimators of ``Cov[x_0|x_t]`` on tasks whose truth is known.

    Args:
        tasks: names such as ``digits_mixture/v1``; None for all whose data are here.
        estimators: names in `ESTIMATORS` or ``module:function``, or functions ``(denoiser, images) -> strategy`` by
            name; None for all whose packages are here.
        output: folder for ``covbench.json``, from which a later call continues, ``covbench.csv``, ``covbench.md`` and
            ``report.html``; None to write nothing.
        points: number of points at each time, at least 2.
        path_points: number of paths, at least 2; 0 for no divergence of paths.  With a planted error there is none, for
            the mean decides it, nor where a C takes more than `MOST_NE` network equivalents.
        seed: of images, points and paths.
        fresh: measure again what is in ``output``.
        progress: whether to show a progress bar.
    Returns:
        Tidy rows: one for each task, estimator, score, and time or number of steps; see `optcov.covbench.write`.
    Raises:
        ConfigError: if a value is not valid; the message is one sentence.
    """
    for key, value in (("points", points), ("path_points", path_points)):
        if value < 2 and (key, value) != ("path_points", 0):
            raise must(key, "at least 2", value, "a standard error needs two")
    chosen = [task_of(name) for name in (TASKS if tasks is None else tasks)]
    entries = _entries(ESTIMATORS if estimators is None else estimators)
    folder = None if output is None else Path(output)
    settings = {"points": points, "path_points": path_points, "seed": seed}
    known = [] if folder is None or fresh else read(folder)
    found = []
    with tqdm(total=len(chosen) * len(entries), unit="cell", disable=not progress, dynamic_ncols=True) as bar:
        for task in chosen:
            which = settings | {"task": task.name, "version": task.version, "planted": task.planted}
            measurement = _Measurement(task, which, known)
            for name, estimator in entries.items():
                bar.set_description(f"{task.label} {name}")
                cell = measurement.known(name)
                if cell is None:
                    try:
                        cell = measurement.cell(name, estimator)
                    except Unavailable as error:
                        named = tasks if measurement.bench is None else estimators
                        if named is not None:
                            raise
                        log.warning("%s of %s is left out: %s", name, task.label, error)
                        continue
                    known.append(cell)
                    if folder is not None:
                        write_cells(folder, known)
                found.append(cell)
                bar.update()
    if not found:
        raise must("estimators", "at least one that can run", "none", "see the warnings above")
    if folder is not None:
        write_report(folder, found)
    return rows_of(found)


def _entries(estimators: Iterable[str] | Mapping[str, Estimator]) -> dict[str, Estimator]:
    """Estimators by name."""
    if isinstance(estimators, Mapping):
        return dict(estimators)
    return {name: estimator_of(name) for name in estimators}


class _Measurement:
    """The cells of one task.

    Args:
        task: the task.
        which: what tells its cells from others, but for the estimator.
        cells: those that are known; more may be added.
    """

    bench: Bench | None = None

    def __init__(self, task: Task, which: Cell, cells: list[Cell]) -> None:
        self.task, self.which, self.cells = task, which, cells

    def known(self, name: str) -> Cell | None:
        """The cell of an estimator, where it is known."""
        wanted = (self.which | {"estimator": name}).items()
        return next((each for each in self.cells if wanted <= each.items()), None)

    def cell(self, name: str, estimator: Estimator) -> Cell:
        """Measure an estimator.

        Raises:
            Unavailable: if it, or the task if there is no `bench` yet, needs what is not here.
        """
        if self.bench is None:
            self.bench = Bench(self.task, self.which["points"], self.which["path_points"], self.which["seed"])
        began = time.process_time()
        strategy = made(name, estimator, self.bench.denoiser, self.bench.images)
        fitted = time.process_time()
        found: Cell = {"times": scores.at_times(self.bench, strategy)}
        exact_mean, is_cheap = not self.task.planted, found["times"][0]["ne"] <= MOST_NE
        if self.which["path_points"] and exact_mean and is_cheap:
            excess, floor = scores.path_excess(self.bench, strategy), self.floor
            path = {steps: value + floor[str(steps)][0] for steps, (value, _) in excess.items()}
            found |= {"path_excess": _by_text(excess), "floor": floor, "slope": scores.slope(path)}
        found |= {"fit_seconds": fitted - began, "score_seconds": time.process_time() - fitted}
        measured: Cell = rounded(found)
        return self.which | {"estimator": name} | provenance_of_cells() | measured

    @cached_property
    def floor(self) -> dict[str, scores.Measured]:
        """What is the same for all estimators."""
        same = {key: self.which[key] for key in ("task", "version", "seed")}.items()
        known = (each["floor"] for each in self.cells if "floor" in each and same <= each.items())
        assert self.bench is not None
        return next(known, None) or _by_text(scores.floor(self.bench))


def _by_text(measured: Mapping[int, scores.Measured]) -> dict[str, scores.Measured]:
    """With the keys that JSON has."""
    return {str(steps): value for steps, value in measured.items()}


@cache
def provenance_of_cells() -> dict[str, Any]:
    """With which versions and on what machine cells are measured."""
    made_by = provenance()
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in names if line.startswith("model name")), platform.machine()
    )
    return {
        "optcov": made_by["versions"]["optcov"],
        "commit": made_by["git_revision"],
        "torch": made_by["versions"]["torch"],
        "machine": f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }


def rounded(content: Any) -> Any:
    """Content with six digits of each number, so that what is read again is what was written."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content
