"""Writes the tables of docs/results.md, and its plot, from ``benchmarks/results/cifar10_reference.json``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; everything else in the document is written by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, PLOT = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "results.png"
STEPS = (5, 10, 25, 50, 100)
ORDER = (
    "beta",
    "beta_tilde",
    "analytic",
    "analytic_imperfect",
    "analytic_diag",
    "npr_dpm_simple",
    "sn_dpm_simple",
    "npr_dpm",
    "sn_dpm",
    "iddpm",
    "nll",
    "low_rank",
)
SOLVERS = {"dpm_solver_pp": "DPM-Solver++(2M)", "unipc": "UniPC", "ipndm": "iPNDM", "deis": "DEIS", "heun": "Heun"}
NAMES = {"ddpm": "DDPM", "ddim": "DDIM", **SOLVERS}
CHOICE_SEED = 100  # samples of this seed and above only choose settings
COUNT = 1000  # samples of a score
MANY = 5000  # samples of a score at few steps, of each of three seeds

Entry = dict[str, Any]


def read(path: Path) -> list[Entry]:
    """The entries of a file of results."""
    return list(json.loads(path.read_text())["cells"])


def scores(entries: Iterable[Entry], **wanted: Any) -> dict[tuple[Any, ...], list[Entry]]:
    """Entries by strategy, sampler, trajectory, steps, count, clipping and noise: a group differs in its seeds only."""
    found: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        if wanted.items() <= entry.items() and entry["seed"] < CHOICE_SEED:
            key = ("strategy", "sampler", "trajectory", "num_steps", "count", "clip_x0", "noise")
            found[tuple(entry.get(name) for name in key)].append(entry)
    return found


def shown(entries: list[Entry]) -> str:
    """The mean over seeds; with the standard deviation over seeds, or the standard error of a bound."""
    values = [entry["value"] for entry in entries]
    if "standard_error" in entries[0]:
        return f"{values[0]:.2f} ± {entries[0]['standard_error']:.2f}"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|:--" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def by_steps(entries: list[Entry], sampler: str, count: int) -> str:
    """A row a strategy, a column a number of steps, on even steps; the best of a column of three or more is bold."""
    found = scores(entries, score="fd_cifar", sampler=sampler, trajectory="even", count=count, clip_x0=None)
    cells = {(key[0], key[3]): group for key, group in found.items()}
    names = [each for each in ORDER if any(each == row for row, _ in cells)]
    steps = [each for each in STEPS if any(each == k for _, k in cells)]
    best = {
        k: min((mean(e["value"] for e in cells[name, k]), name) for name in names if (name, k) in cells)[1]
        if len({name for name, own in cells if own == k}) > 2
        else None
        for k in steps
    }
    rows = []
    for name in names:
        texts = [shown(cells[name, each]) if (name, each) in cells else "" for each in steps]
        rows.append(
            [name, *(f"**{t}**" if best[each] == name and t else t for each, t in zip(steps, texts, strict=True))]
        )
    return table(["`var=`", *(f"{each} steps" for each in steps)], rows)


def solvers(entries: list[Entry], count: int) -> str:
    """The ODE solvers, each with the trajectory and clipping that did best on another seed, and what they cost."""
    rows = []
    found = scores(entries, score="fd_cifar", count=count)
    for key, group in sorted(found.items(), key=lambda item: (round(item[1][0]["ne"]), item[0])):
        if key[1] in SOLVERS:
            clip = "" if key[5] is None else "yes" if key[5] else "no"
            rows.append([named(key), f"{group[0]['ne']:.0f}", key[2], clip, shown(group)])
    return table(["sampler", "NE", "trajectory", "clipped x_0", "fd_cifar"], rows)


def bits(entries: list[Entry]) -> str:
    """Bits/dim on test images, a row a strategy and trajectory."""
    found = scores(entries, score="bits")
    cells = {(key[0], key[2], key[3]): group for key, group in found.items()}
    steps = [each for each in STEPS if any(each == k for _, _, k in cells)]
    rows = [
        [
            name,
            trajectory,
            *(shown(cells[name, trajectory, k]) if (name, trajectory, k) in cells else "" for k in steps),
        ]
        for trajectory in ("even", "optimal")
        for name in ORDER
        if any((name, trajectory) == key[:2] for key in cells)
    ]
    return table(["`var=`", "trajectory", *(f"{each} steps" for each in steps)], rows)


def named(key: tuple[Any, ...]) -> str:
    """What is sampled with: a solver, with the covariance of the noise that it adds; or a sampler and its strategy."""
    if key[1] in SOLVERS:
        return SOLVERS[key[1]] + (f" + {key[0]}, {key[6]}" if key[6] else "")
    return f"{NAMES[key[1]]} {key[0]}"


def tables(entries: list[Entry]) -> dict[str, str]:
    """Every table of the document by name."""
    return {
        "ddpm, few steps": by_steps(entries, "ddpm", MANY),
        "ddim, few steps": by_steps(entries, "ddim", MANY),
        "ddpm": by_steps(entries, "ddpm", COUNT),
        "ddim": by_steps(entries, "ddim", COUNT),
        "solvers": solvers(entries, COUNT),
        "bits": bits(entries),
    }


def fill_from_cells(page: Path, cells: Path, tables: Callable[[], dict[str, str]]) -> None:
    """Write the tables of a page, after taking the cells of the folder on the command line, if there is one.

    Args:
        page: the document.
        cells: the file of cells that its tables are made from, named as in that folder.
        tables: returns every table by its name in the document.
    """
    if len(sys.argv) > 1:
        shutil.copy(Path(sys.argv[1]) / cells.name, cells)
    page.write_text(filled(page.read_text(), tables()))
    print(page)


def filled(page: str, made: dict[str, str]) -> str:
    """The document with its tables replaced."""
    for name, text in made.items():
        before, marker, rest = page.partition(f"<!-- {name} -->\n")
        page = f"{before}{marker}{text}\n{rest[rest.index('<!-- end -->') :]}"
    return page


def plot(entries: list[Entry], count: int, path: Path) -> None:
    """Distance against network equivalents, a line for each strategy and solver."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for key, group in scores(entries, score="fd_cifar", count=count).items():
        values = [entry["value"] for entry in group]
        lines[named(key)].append((group[0]["ne"], mean(values), stdev(values) if len(values) > 1 else 0.0))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, kind in zip(axes, ("DDPM", "DDIM"), strict=True):
        for name, points in sorted(lines.items()):
            if name.startswith(kind) or (kind == "DDIM" and not name.startswith(("DDPM", "DDIM"))):
                x, y, error = zip(*sorted(points), strict=True)
                axis.errorbar(x, y, error, marker="o", ms=3, lw=1, label=name.removeprefix(f"{kind} "))
        axis.set(xscale="log", yscale="log", xlabel="network equivalents", title=kind)
        axis.set_xticks([each for each in STEPS if any(x >= each for points in lines.values() for x, *_ in points)])
        axis.set_yticks([3, 4, 5, 7, 10, 14])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_locator(NullLocator())
        axis.legend(fontsize=7)
    axes[0].set_ylabel("fd_cifar")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def write(results: Path) -> None:
    """Write the tables and the plot."""
    entries = read(results)
    PAGE.write_text(filled(PAGE.read_text(), tables(entries)))
    plot(entries, COUNT, PLOT)
    print(f"{PAGE}, {PLOT}")
