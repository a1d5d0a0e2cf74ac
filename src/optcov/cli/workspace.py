"""A W&B workspace for a project of runs: samples, scores, variances and losses, in sections of their own.

``python -m optcov.cli.workspace --entity ENTITY --project optcov`` saves it as a view of the project.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optcov.cli import dashboard

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def build(entity: str, project: str, metrics: Sequence[str]) -> Workspace:
    """The workspace, not saved yet; needs ``wandb-workspaces``.

    Args:
        entity, project: whose runs it shows.
        metrics: final scores, by the names they have in ``results.json``, such as ``fd_pixel_2k``.
    """
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2 import (
        CustomChart,
        LinePlot,
        MediaBrowser,
        ScatterPlot,
        SummaryMetric,
        WeavePanelSummaryTable,
    )

    def lines(chart: str, x: str) -> Any:
        """A chart that :mod:`optcov.cli.dashboard` logs."""
        return CustomChart(
            query={"summaryTable": {"tableKey": f"{chart}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={name: name for name in ("step", "lineKey", "lineVal")},
            chart_strings={"title": chart, "xname": x},
        )

    def curves(title: str, names: str, log_y: bool) -> Any:
        """Whatever is logged during training under names that a regular expression matches."""
        return LinePlot(title=title, x=dashboard.STEP, metric_regex=names, log_y=log_y)

    pictures = ("samples", "track/mean/samples", "track/variance/samples")
    sections = {
        "samples": [MediaBrowser(title=key, media_keys=[key], num_columns=2) for key in pictures],
        "scores against steps": [
            *[lines(f"{metric}_against_steps", "steps") for metric in metrics],
            *[ScatterPlot(x=SummaryMetric("num_steps"), y=SummaryMetric(metric), log_y=True) for metric in metrics],
            WeavePanelSummaryTable(table_name="table"),
        ],
        "variance over t": [lines("variance", "t")],
        "scores during training": [
            curves("mean network", "^track/mean/.*", log_y=True),
            curves("variance", "^track/variance/.*", log_y=True),
        ],
        "training losses": [curves("losses", "^(mean|variance|classifier)/loss$", log_y=True)],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="optcov",
        sections=[workspaces.Section(name, panels=panels, is_open=True) for name, panels in sections.items()],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the workspace and save it; where that is not possible, say in one sentence what is missing."""
    parser = argparse.ArgumentParser(description="Save a W&B workspace that shows the project's runs.")
    parser.add_argument("--entity", required=True, help="user or team whose project it is")
    parser.add_argument("--project", default="optcov")
    parser.add_argument("--metric", nargs="+", default=["fd_pixel_2k"], help="scores, as named in results.json")
    given = parser.parse_args(arguments)
    try:
        workspace = build(given.entity, given.project, given.metric)
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        sys.exit("error: the package wandb-workspaces is missing: pip install wandb-workspaces")
    if not dashboard.logged_in():
        sys.exit("error: the workspace is built, but W&B keeps it on its server: log in with `wandb login` first")
    if not dashboard.reachable():
        sys.exit(f"error: the workspace is built, but {dashboard.server()} does not answer, which is to keep it")
    workspace.save()  # says where it is


if __name__ == "__main__":
    main()
