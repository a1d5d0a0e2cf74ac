"""Reports that compare runs: tables of scores, plots, pictures and an HTML page, for notebooks and the command line."""

from optcov.report.picture import by_class, picture, sample_grid, tile
from optcov.report.plot import plot, plot_variance
from optcov.report.runs import Results, Run, Runs, collect, gather
from optcov.report.table import Scores, labels, metric_names, scores, table
from optcov.report.write import check_comparable, write_report, write_tables

__all__ = [
    "Results",
    "Run",
    "Runs",
    "Scores",
    "by_class",
    "check_comparable",
    "collect",
    "gather",
    "labels",
    "metric_names",
    "picture",
    "plot",
    "plot_variance",
    "sample_grid",
    "scores",
    "table",
    "tile",
    "write_report",
    "write_tables",
]
