"""The files of the table: the cells as JSON, rows as CSV, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optcov.covbench.write import csv_of, json_of_cells, read_cells
from optcov.files import write_atomically
from optcov.posterior.methods import NAMES

Cell = dict[str, Any]

BUDGETS = (10, 25, 50, 100)  # network equivalents
SCORES = ("energy", "mse", "c50", "c90", "c95", "crps")
KEYS = ("task", "method", "steps", "ne", "seconds", "choice", *(f"{key}{end}" for key in SCORES for end in ("", "_se")),
        "measurements", "samples", "seed", "optcov", "commit", "torch", "machine")  # fmt: skip


def read(folder: Path) -> list[Cell]:
    """The cells in a folder; none where there is no file.

    Raises:
        ConfigError: if the file is damaged.
    """
    return read_cells(folder / "posterior.json", {"task", "method", "steps", *SCORES})


def write_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Write ``posterior.json``, a cell a line."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "posterior.json", json_of_cells(cells))


def write_tables(folder: Path, cells: list[Cell]) -> None:
    """Write ``posterior.csv`` and ``posterior.md``."""
    ends = tuple(enumerate(("", "_se")))
    rows = ({**each, **{f"{key}{end}": each[key][i] for key in SCORES for i, end in ends}} for each in cells)
    write_atomically(folder / "posterior.csv", csv_of(KEYS, rows))
    write_atomically(folder / "posterior.md", to_markdown(cells))


def to_markdown(cells: list[Cell]) -> str:
    """All tables."""
    found = []
    for task in dict.fromkeys(each["task"] for each in cells):
        found.append(f"### {task}\n\n{at_steps(cells, task)}\n\nEnergy at equal cost:\n\n{at_budgets(cells, task)}\n")
    return "\n".join(found)


def at_steps(cells: list[Cell], task: str, steps: int = 10) -> str:
    """The scores of all methods for a number of steps, in Markdown; ``ms`` is time beside the network's."""
    lines = ["| | NE | energy | RMSE | 50 % | 90 % | 95 % | CRPS | ms |", "|:--" * 9 + "|"]
    for each in _rows(cells, task):
        if each["steps"] in (0, steps):
            exact = each["method"] == "exact"
            seconds = "" if each["seconds"] != each["seconds"] else f"{1000 * each['seconds']:.2f}"
            costs = ("", "") if exact else (str(each["ne"]), seconds)
            coverage = [f"{each[key][0]:.0f}" for key in ("c50", "c90", "c95")]
            values = [_energy(each), f"{each['mse'][0] ** 0.5:.3f}", *coverage, f"{each['crps'][0]:.3f}"]
            lines.append("| " + " | ".join([NAMES[each["method"]], costs[0], *values, costs[1]]) + " |")
    return "\n".join(lines)


def at_budgets(cells: list[Cell], task: str, budgets: Iterable[int] = BUDGETS) -> str:
    """The energy of each method with as many steps as a budget allows, in Markdown."""
    budgets = list(budgets)
    lines = ["| | " + " | ".join(f"{each} NE" for each in budgets) + " |", "|:--" * (1 + len(budgets)) + "|"]
    for name in dict.fromkeys(each["method"] for each in _rows(cells, task) if each["method"] != "exact"):
        row = [within(cells, task, name, budget) for budget in budgets]
        lines.append("| " + " | ".join([NAMES[name], *("" if each is None else _energy(each) for each in row)]) + " |")
    return "\n".join(lines)


def within(cells: list[Cell], task: str, method: str, budget: int) -> Cell | None:
    """The cell of a method with the most steps that a budget allows; None where it allows no two."""
    own = [each for each in _rows(cells, task) if each["method"] == method]
    cost = round(own[0]["ne"] / own[0]["steps"])  # a trajectory may leave out a step
    return next((each for each in own if each["steps"] == budget // cost), None)


def _rows(cells: list[Cell], task: str) -> list[Cell]:
    """The cells of a task, in the order of `NAMES` and of their steps."""
    own = [each for each in cells if each["task"] == task]
    return sorted(own, key=lambda each: (list(NAMES).index(each["method"]), each["steps"]))


def _energy(each: Cell) -> str:
    value, error = each["energy"]
    if value != value:
        return "not finite"
    digits = 0 if value > 10 else 2 if value > 0.1 else 3
    return f"{max(value, 0.0):.{digits}f} ± {error:.{digits}f}"
