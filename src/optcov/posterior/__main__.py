"""The command line of the table of posterior samplers: ``python -m optcov.posterior``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from optcov.errors import ConfigError
from optcov.posterior import scores, tasks
from optcov.posterior.cells import MEASUREMENTS, SAMPLES, STEPS, run
from optcov.posterior.methods import METHODS
from optcov.posterior.write import BUDGETS

OUTPUT = Path("outputs/posterior")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the methods, and print a table for each task."""
    parser = argparse.ArgumentParser(
        "python -m optcov.posterior",
        description="Score posterior samplers on tasks whose posteriors are known. The same command continues where it "
        "was stopped.",
        epilog=f"{tasks.__doc__}\nmethods: {' '.join(METHODS)}\n\n{scores.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", metavar="TASK", help="which of the tasks below; all unless given")
    add("--methods", nargs="+", metavar="NAME", help="which of the methods below; all unless given")
    add("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for posterior.json, .csv and .md")
    add("--budgets", nargs="*", type=int, default=list(BUDGETS), help="network equivalents (default: %(default)s)")
    add("--steps", nargs="*", type=int, default=[STEPS], help="steps, whatever they cost (default: %(default)s)")
    add("--measurements", type=int, default=MEASUREMENTS, help="of each task (default: %(default)s)")
    add("--samples", type=int, default=SAMPLES, help="of each measurement (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--fresh", action="store_true", help="measure again what FOLDER has")
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads of a core each (default: %(default)s)")
    given = vars(parser.parse_args(arguments))
    try:
        rows = run(**given)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print((given["output"] / "posterior.md").read_text())
    print(f"{len(rows)} rows in {given['output'] / 'posterior.csv'}")


if __name__ == "__main__":
    main()
