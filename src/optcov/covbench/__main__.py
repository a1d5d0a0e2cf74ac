"""The command line of covbench: ``python -m optcov.covbench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optcov.covbench import scores
from optcov.covbench.cells import PATH_POINTS, POINTS, run
from optcov.covbench.estimators import ESTIMATORS
from optcov.covbench.tasks import TASKS
from optcov.errors import ConfigError

OUTPUT = Path("outputs/covbench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run covbench, and print a table for each task."""
    parser = argparse.ArgumentParser(
        "python -m optcov.covbench",
        description="Score estimators of Cov[x_0|x_t] on tasks whose truth is known. The same command continues where "
        "it was stopped.",
        epilog=f"tasks: {' '.join(TASKS)}\n\nestimators: {' '.join(ESTIMATORS)}\n\n{scores.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", metavar="TASK", help="which of the tasks below; all whose data are here, unless given")
    add(
        "--estimators", "--estimator", nargs="+", metavar="NAME", action="extend",
        help="which of the estimators below, or module:function for a function (denoiser, images) -> strategy; all "
        "whose packages are installed, unless given",
    )  # fmt: skip
    add(
        "--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for covbench.json, .csv and .md, and report.html"
    )
    add("--points", type=int, default=POINTS, help="number of points at each time (default: %(default)s)")
    add("--path-points", type=int, default=PATH_POINTS, help="number of paths; 0 for none (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--fresh", action="store_true", help="measure again what FOLDER has")
    given = parser.parse_args(arguments)
    try:
        rows = run(
            given.tasks,
            given.estimators,
            output=given.output,
            points=given.points,
            path_points=given.path_points,
            seed=given.seed,
            fresh=given.fresh,
        )
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print((given.output / "covbench.md").read_text())
    print(f"{len(rows)} rows in {given.output / 'covbench.csv'}; {given.output / 'report.html'}")


if __name__ == "__main__":
    main()
