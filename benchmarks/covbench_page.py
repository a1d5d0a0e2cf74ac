"""Writes the tables of docs/covbench.md from ``benchmarks/results/covbench.json``.

python -m optcov.covbench --output outputs/covbench      minutes; with azula installed for its estimators
python -m benchmarks.covbench_page outputs/covbench      takes its cells for those of the document
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from benchmarks.reference_page import ROOT, filled, table
from optcov.covbench.write import Cell, by_task, read, to_markdown

PAGE, RESULTS = ROOT / "docs" / "covbench.md", ROOT / "benchmarks" / "results"
COLUMNS = ("diagonal", "frobenius", "excess", "90 %", "residual", "ne")
OF_PATHS = ("path 8", "path 128", "slope")


def tables(cells: list[Cell]) -> dict[str, str]:
    """Every table of the document by name."""
    found = {"floor": floors(cells)}
    for name, own in by_task(cells).items():
        found[name] = to_markdown(own, COLUMNS if own[0]["planted"] else (*COLUMNS, *OF_PATHS))
    return found


def slope_between(floor: dict[str, tuple[float, float]], few: int, many: int) -> tuple[float, float]:
    """The slope of the floor in log T between two numbers of steps, and its standard error."""
    (one, error), (other, last) = floor[str(few)], floor[str(many)]
    width = math.log(many / few)
    return math.log(other / one) / width, math.hypot(error / one, last / other) / width


def floors(cells: list[Cell]) -> str:
    """What no Gaussian step can avoid: a row a task that has some, a column a number of steps."""
    rows = {}
    for cell in cells:
        floor = cell.get("floor", {})
        if floor and floor["8"][0] > 1e-9 and not cell["planted"]:
            slopes = [slope_between(floor, few, many) for few, many in ((32, 128), (128, 512))]
            texts = [f"{value:.2g} ± {error:.1g}" for value, error in floor.values()]
            rows[cell["task"]] = [*texts, *(f"{value:.2f} ± {error:.2f}" for value, error in slopes)]
    steps = list(next(cell["floor"] for cell in cells if "floor" in cell))
    head = ["task", *(f"T = {each}" for each in steps), "slope 32 to 128", "128 to 512"]
    return table(head, [[f"`{name}/v1`", *texts] for name, texts in rows.items()])


def main() -> None:
    if len(sys.argv) > 1:
        shutil.copy(Path(sys.argv[1]) / "covbench.json", RESULTS / "covbench.json")
    PAGE.write_text(filled(PAGE.read_text(), tables(read(RESULTS))))
    print(PAGE)


if __name__ == "__main__":
    main()
