"""Writes the tables of docs/covbench.md from ``benchmarks/results/covbench.json``.

python -m optcov.covbench --output outputs/covbench      minutes; with azula installed for its estimators
python -m benchmarks.covbench_page outputs/covbench      takes its cells for those of the document
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.reference_page import ROOT, fill_from_cells, table
from optcov.covbench.tasks import FIRST, LAST, SCHEDULE
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


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the mean over a standard normal number; float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@cache
def two_points(steps: int) -> float:
    """The floor of a path of so many steps for data that are 1 or -1, by quadrature.

    A step from SNR u to u' is an observation of x_0 with noise of variance ``1 / (u' - u)``, so that
    ``KL(q(x_s|x_t) || g)`` is that of two Gaussians at ``+-sqrt(u' - u)``, of variance 1 and weights p and 1 - p, from
    one Gaussian.  Given x_0 = 1, the log odds of p are ``2 u + 2 sqrt(u) z``.
    """
    low, high = SCHEDULE.log_snr(torch.tensor([LAST, FIRST], dtype=torch.float64)).tolist()
    snr = torch.linspace(low, high, steps + 1, dtype=torch.float64).exp()
    (z, over_x_t), (y, over_x_s) = hermite(48), hermite(48)
    odds = 2 * snr[:-1, None] + 2 * snr[:-1, None].sqrt() * z
    place, p, other = snr.diff().sqrt()[:, None], odds.sigmoid(), (-odds).sigmoid()
    mean, variance = (p - other) * place, 1 + 4 * p * other * place**2
    total = torch.zeros_like(p)
    for share, sign in ((p, 1), (other, -1)):
        x = sign * place[..., None] + y
        log_q = torch.logaddexp(
            logsigmoid(odds)[..., None] - (x - place[..., None]) ** 2 / 2,
            logsigmoid(-odds)[..., None] - (x + place[..., None]) ** 2 / 2,
        )
        log_g = -((x - mean[..., None]) ** 2) / variance[..., None] / 2 - variance[..., None].log() / 2
        total += share * ((log_q - log_g) * over_x_s).sum(-1)
    return float((total * over_x_t).sum())


def floors(cells: list[Cell]) -> str:
    """What no Gaussian step can avoid: a row a task that has some, a column a number of steps."""
    rows: dict[str, list[str]] = {}
    for cell in cells:
        floor = cell.get("floor", {})
        if floor and floor["8"][0] > 1e-9 and not cell["planted"]:
            slopes = [slope_between(floor, few, many) for few, many in ((32, 128), (128, 512))]
            texts = [f"{value:.2g} ± {error:.1g}" for value, error in floor.values()]
            rows[cell["task"]] = [*texts, *(f"{value:.2f} ± {error:.2f}" for value, error in slopes)]
    steps = list(next(cell["floor"] for cell in cells if "floor" in cell))
    head = ["task", *(f"T = {each}" for each in steps), "slope 32 to 128", "128 to 512"]
    exact = {each: (two_points(int(each)), 0.0) for each in steps}
    closed = [f"{slope_between(exact, few, many)[0]:.2f}" for few, many in ((32, 128), (128, 512))]
    last = ["two points, by quadrature", *(f"{value:.2g}" for value, _ in exact.values()), *closed]
    return table(head, [*([f"`{name}/v1`", *texts] for name, texts in rows.items()), last])


def main() -> None:
    fill_from_cells(PAGE, RESULTS / "covbench.json", lambda: tables(read(RESULTS)))


if __name__ == "__main__":
    main()
