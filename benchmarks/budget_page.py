"""Writes the tables of docs/budget.md, and its plot, from ``benchmarks/results/budget_*.json``."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.reference_page import ROOT, filled, table

RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOT = ROOT / "docs" / "budget.md", ROOT / "docs" / "images" / "budget.png"
DISTANCES = ("features", "fd_pixel", "energy")
SOLVERS = ("DDIM", "Heun", "2M", "3M", "UniPC", "iPNDM", "DEIS")
SHOWN = (
    *(name for name in SOLVERS if name != "Heun"),
    "DDIM + data_cov",
    "2M matched + data_cov",
    "2M shaped + data_cov",
    "UniPC balanced",
    "UniPC shaped + data_cov",
)

Cells = dict[str, dict[int, dict[str, Any]]]  # by method and network equivalents


def read(name: str) -> Cells:
    """The cells of a network that are measured to the end."""
    found: Cells = {}
    for key, cell in json.loads((RESULTS / f"budget_{name}.json").read_text())["cells"].items():
        method, _, budget = key.rpartition(" @ ")
        if len(cell["scores"]) >= 3:
            found.setdefault(method, {})[int(budget)] = cell
    return dict(sorted(found.items(), key=lambda item: rank(item[0])))


def rank(name: str) -> tuple[int, str, int]:
    """Where a method stands in tables: solvers, then DDIM and DDPM with noise, then multistep means by their noise."""
    mean, _, var = name.partition(" + ")
    kind = mean.partition(" ")[2]
    if name in SOLVERS:
        return 0, "", SOLVERS.index(name)
    return (2 if kind else 1), mean, 0 if not var else 1


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval by Student's t."""
    count, found = len(values), torch.tensor(values, dtype=torch.float64)
    half = float(student.ppf(0.975, count - 1) * found.std() / count**0.5) if count > 1 else math.inf
    return float(found.mean()), half


def values(cell: dict[str, Any], score: str) -> list[float]:
    """A score of each seed, in their order."""
    return [scores[score] for _, scores in sorted(cell["scores"].items(), key=lambda item: int(item[0]))]


def shown(cell: dict[str, Any], score: str) -> str:
    """Mean ± half an interval."""
    middle, half = interval(values(cell, score))
    digits = 3 if score == "energy" else 2
    return f"{middle:.{digits}f} ± {half:.{digits}f}" if middle < 100 else f"{middle:.0f} ± {half:.0f}"


def middle(cell: dict[str, Any], score: str) -> float:
    """The mean over seeds."""
    return mean(values(cell, score))


def budgets(cells: Cells) -> list[int]:
    """The network equivalents that were measured."""
    return sorted({budget for row in cells.values() for budget in row})


def best(cells: Cells, budget: int, score: str, solvers: bool) -> str | None:
    """The solver, or the other method, of the least mean at a budget."""
    names = [name for name, row in cells.items() if budget in row and (name in SOLVERS) == solvers and name != "DDPM"]
    return min(names, key=lambda name: middle(cells[name][budget], score), default=None)


def selected(cells: Cells, budget: int) -> str | None:
    """The method with noise, or with a shorter extrapolation, that is best on the seed on which times are chosen."""
    names = [name for name, row in cells.items() if budget in row and name not in (*SOLVERS, "DDPM")]
    return min(names, key=lambda name: min(cells[name][budget]["tuning"].values()), default=None)


def grid(cells: Cells, score: str) -> str:
    """A row a method, a column a budget; the best solver and the best method with noise of a column are bold."""
    columns = budgets(cells)
    bold = {(best(cells, budget, score, solvers), budget) for budget, solvers in product(columns, (True, False))}
    rows = []
    for name, row in cells.items():
        texts = [shown(row[each], score) if each in row else "" for each in columns]
        rows.append([name, *(f"**{t}**" if (name, b) in bold else t for t, b in zip(texts, columns, strict=True))])
    return table(["method", *(f"NE = {each}" for each in columns)], rows)


def ratio(cells: Cells, name: str, other: str, budget: int, score: str) -> tuple[float, float]:
    """Of two methods on the same noise, seed by seed: the mean and half its 95 % interval."""
    pairs = zip(values(cells[name][budget], score), values(cells[other][budget], score), strict=False)
    return interval([one / two for one, two in pairs])


def apart(cell: dict[str, Any], other: dict[str, Any], score: str) -> bool:
    """Whether the interval of a mean ends below that of another."""
    (one, half), (two, other_half) = interval(values(cell, score)), interval(values(other, score))
    return one + half < two - other_half


def verdict(cells: Cells) -> str:
    """A row a budget and distance: the best solver, and methods with noise against it."""
    rows = []
    for budget in budgets(cells):
        for score in DISTANCES[:2]:
            solver = best(cells, budget, score, True)
            chosen, afterwards = selected(cells, budget), best(cells, budget, score, False)
            if solver is None or chosen is None or afterwards is None:
                continue
            two = cells[solver][budget]
            row = [f"{budget}", score, f"{solver}, {setting(two)}: {shown(two, score)}"]
            for name in (chosen, afterwards):
                text = f"{name}, {setting(cells[name][budget])}: {shown(cells[name][budget], score)}"
                row += [text, pair(ratio(cells, name, solver, budget, score))]
            rows.append([*row, "yes" if apart(cells[afterwards][budget], two, score) else "no"])
    head = [
        "NE",
        "distance",
        "best solver",
        "noise, by the tuning seed",
        "ratio",
        "noise, best afterwards",
        "ratio",
        "apart",
    ]
    return table(head, rows)


def pair(value: tuple[float, float]) -> str:
    """A mean ± half its interval; bold above 1."""
    text = f"{value[0]:.2f} ± {value[1]:.2f}"
    return f"**{text}**" if round(value[0], 2) > 1 else text


def setting(cell: dict[str, Any]) -> str:
    """The times that were chosen, and whether x_0 is clipped."""
    return str(cell["trajectory"]).replace("_", " ") + (" clipped" if cell.get("clipped") else "")


def against_own(cells: Cells, score: str) -> str:
    """Multistep means with noise against the solver alone, seed by seed."""
    rows, columns = [], budgets(cells)
    for name, row in cells.items():
        solver, kind, *_ = [*name.split(" "), ""]
        if kind in ("balanced", "matched", "shaped"):
            known = [each in row and each in cells.get(solver, {}) for each in columns]
            rows.append(
                [
                    name,
                    *(
                        pair(ratio(cells, name, solver, each, score)) if there else ""
                        for each, there in zip(columns, known, strict=True)
                    ),
                ]
            )
    return table(["method", *(f"NE = {each}" for each in columns)], rows)


def coverage(cells: Cells) -> str:
    """Precision and recall of all methods at the budgets that have five seeds."""
    columns = [each for each in budgets(cells) if each in (4, 5, 6, 10)]
    rows = []
    for name, row in cells.items():
        known = [
            row[each] for each in columns if each in row and "precision" in next(iter(row[each]["scores"].values()))
        ]
        if known:
            texts = [
                f"{middle(row[each], 'precision'):.2f} / {middle(row[each], 'recall'):.2f}" if each in row else ""
                for each in columns
            ]
            rows.append([name, *texts])
    return table(["method", *(f"NE = {each}" for each in columns)], rows)


def tables(cells: Cells) -> dict[str, str]:
    """Every table of the document by name."""
    return {
        "verdict": verdict(cells),
        "features": grid(cells, "features"),
        "fd_pixel": grid(cells, "fd_pixel"),
        "energy": grid(cells, "energy"),
        "against the solver, features": against_own(cells, "features"),
        "against the solver, fd_pixel": against_own(cells, "fd_pixel"),
        "precision and recall": coverage(cells),
    }


def plot(cells: Cells, path: Path) -> None:
    """Distance against network equivalents: features and pixels; dashed lines are solvers without noise."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, score in zip(axes, DISTANCES[:2], strict=True):
        for number, name in enumerate(each for each in SHOWN if each in cells):
            points = sorted(cells[name].items())
            middles, halves = zip(*(interval(values(cell, score)) for _, cell in points), strict=True)
            style = "--" if name in SOLVERS else "-"
            axis.errorbar(
                [budget for budget, _ in points], middles, halves,
                ls=style, marker="o", ms=3, lw=1, color=f"C{number % 10}" if number < 10 else "k", label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="network equivalents", title=score)
        axis.set_xticks(budgets(cells))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter("{x:g}")
    axes[1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def write() -> None:
    """Write the tables and the plot of the learned network."""
    cells = read("learned")
    PAGE.write_text(filled(PAGE.read_text(), tables(cells)))
    plot(cells, PLOT)
    print(f"{PAGE}, {PLOT}")
