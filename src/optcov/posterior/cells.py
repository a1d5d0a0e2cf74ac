"""Runs the table cell by cell: a cell is a method on a task for a number of steps, and one on disk is not run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from optcov.covbench.cells import provenance_of_cells, rounded
from optcov.errors import did_you_mean, must
from optcov.posterior.methods import METHODS
from optcov.posterior.scores import ENOUGH
from optcov.posterior.tasks import TASKS, Task
from optcov.posterior.write import BUDGETS, Cell, read, write_cells, write_tables

MEASUREMENTS, SAMPLES, STEPS = 16, 40, 10
LEAST_STEPS = 2


def run(
    tasks: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    *,
    output: str | Path | None = None,
    budgets: Iterable[int] = BUDGETS,
    steps: Iterable[int] = (STEPS,),
    measurements: int = MEASUREMENTS,
    samples: int = SAMPLES,
    seed: int = 0,
    fresh: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Score posterior samplers on tasks whose posteriors are known.

    Args:
        tasks: names in `TASKS`; None for all.
        methods: names in `METHODS`; None for all.
        output: folder for ``posterior.json``, from which a later call continues, ``posterior.csv`` and
            ``posterior.md``; None to write nothing.
        budgets: network equivalents of a sample; each method takes as many steps as a budget allows, two at least.
        steps: numbers of steps that all methods take beside that, whatever they cost.
        measurements: number of measurements, at least 2.
        samples: number of samples of each, at least `optcov.posterior.scores.ENOUGH`.
        seed: of images, noise and samples.
        fresh: measure again what is in ``output``.
        workers: number of threads, of a core each; 1 for torch's own threads.
        progress: whether to show a progress bar.
    Returns:
        The cells: one for each task, method and number of steps; a score is a pair, its mean over measurements and its
        standard error.  The method ``exact`` is other samples of the exact posterior.
    Raises:
        ConfigError: if a value is not valid; the message is one sentence.
    """
    if measurements < 2:
        raise must("measurements", "at least 2", measurements, "a standard error needs two")
    if samples < ENOUGH:
        raise must("samples", f"at least {ENOUGH}", samples, "intervals of 95 % need as many")
    chosen, names = _named("task", tasks, TASKS), _named("method", methods, METHODS)
    budgets, steps = sorted(budgets), sorted(steps)
    for key, values in (("budgets", budgets), ("steps", steps)):
        if values and values[0] < LEAST_STEPS:
            raise must(key, f"at least {LEAST_STEPS}", values[0], "a chain of one step has no noise to guide")
    folder = None if output is None else Path(output)
    settings = {"measurements": measurements, "samples": samples, "seed": seed}
    known = [] if folder is None or fresh else read(folder)
    wanted = []
    for name in chosen:
        task = _made(name, measurements, samples, seed)
        cells = _wanted(task, names, budgets, steps)
        wanted += [settings | {"task": name, "method": method, "steps": count} for method, count in cells]
    missing = [which for which in wanted if _of(which, known) is None]
    for which, scores in tqdm(
        _measured(missing, workers), total=len(missing), unit="cell", disable=not progress, dynamic_ncols=True
    ):
        known.append(which | provenance_of_cells() | rounded(scores))
        if folder is not None:
            write_cells(folder, known)
    found = [cell for which in wanted if (cell := _of(which, known)) is not None]
    if folder is not None:
        write_tables(folder, found)
    return found


def _of(which: Cell, cells: list[Cell]) -> Cell | None:
    return next((each for each in cells if which.items() <= each.items()), None)


def _named(key: str, names: Iterable[str] | None, valid: dict[str, Any]) -> list[str]:
    found = list(valid if names is None else names)
    for name in found:
        if name not in valid:
            raise must(key, "one of the table", name, did_you_mean(name, valid))
    return found


def _wanted(task: Task, methods: list[str], budgets: list[int], steps: list[int]) -> Iterator[tuple[str, int]]:
    """Methods and numbers of steps; 0 steps for exact samples."""
    yield "exact", 0
    for name in methods:
        if (cost := METHODS[name].cost(task)) > 0:
            counts = {*steps, *(budget // cost for budget in budgets)}
            yield from ((name, count) for count in sorted(counts) if count >= LEAST_STEPS)


def _measured(missing: list[Cell], workers: int) -> Iterator[tuple[Cell, Cell]]:
    """Cells and their scores, as they are ready."""
    if workers == 1:
        yield from ((which, _scores(which)) for which in missing)
        return
    threads, pool = (
        torch.get_num_threads(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)),
    )
    try:
        jobs = {pool.submit(_scores, which): which for which in missing}
        yield from ((jobs[job], job.result()) for job in as_completed(jobs))
    finally:
        pool.shutdown(cancel_futures=True)  # also where the user stops it: cells that are written are kept
        torch.set_num_threads(threads)


def _scores(which: Cell) -> Cell:
    measurements, samples, seed = which["measurements"], which["samples"], which["seed"]
    task = _made(which["task"], measurements, samples, seed)
    if which["method"] == "exact":
        return {"ne": 0, "seconds": 0.0, **task.scores(task.again(samples))}
    other = _made(which["task"], max(measurements // 4, 2), samples, seed + 1)
    drawn = METHODS[which["method"]].draw(task, other, which["steps"], samples, seed)
    return {"ne": drawn.ne, "seconds": drawn.seconds, "choice": drawn.choice, **task.scores(drawn.samples)}


@lru_cache(maxsize=4)
def _made(name: str, measurements: int, samples: int, seed: int) -> Task:
    return Task.made(name, measurements, samples, seed)
