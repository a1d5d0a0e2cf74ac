"""Writes the tables of exact posteriors in docs/inverse.md from ``benchmarks/results/posterior.json``.

python -m optcov.posterior --output outputs/posterior      minutes on two cores
python -m benchmarks.posterior_page outputs/posterior      takes its cells for those of the document
"""

from __future__ import annotations

from benchmarks.reference_page import ROOT, fill_from_cells
from optcov.posterior.write import Cell, at_budgets, at_steps, read

PAGE, RESULTS = ROOT / "docs" / "inverse.md", ROOT / "benchmarks" / "results"
BY_BUDGET = ("digits_inpaint", "digits_superres")
OTHERS = ("field_pixels", "finite_inpaint", "ring")


def tables(cells: list[Cell]) -> dict[str, str]:
    """Every table by its name in the document."""
    found = {f"{task} steps": at_steps(cells, task) for task in (*BY_BUDGET, *OTHERS)}
    return found | {f"{task} budgets": at_budgets(cells, task) for task in BY_BUDGET}


def main() -> None:
    fill_from_cells(PAGE, RESULTS / "posterior.json", lambda: tables(read(RESULTS)))


if __name__ == "__main__":
    main()
