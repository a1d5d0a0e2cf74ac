"""Tables of scores: a row for each strategy and a column for each number of steps, averaged over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from optcov.foreign import label, markdown, printable, terminal, tex
from optcov.keys import is_label
from optcov.report.runs import STANDARD_ERROR

if TYPE_CHECKING:
    import pandas as pd


def metric_names(runs: pd.DataFrame) -> list[str]:
    """The columns of `collect` that are metrics."""
    following = [str(name) for name in runs.loc[:, "nfe":].columns if name not in ("nfe", "ne", "seed")]
    errors = {name + STANDARD_ERROR for name in following}
    return [name for name in following if name not in errors]


def higher_is_better(runs: pd.DataFrame, metric: str) -> bool:
    """Whether larger values of a metric are better."""
    return metric in runs.attrs.get("higher_is_better", [])


def labels(runs: pd.DataFrame) -> pd.Series[str]:
    """A label for each run that says what distinguishes it apart from steps and seed.

    A label is, for example, ``beta`` or ``var=beta, sampler=ddim``.  If nothing distinguishes two runs, not even the
    seed, their folder names are added.
    """
    import pandas as pd

    by_settings = runs.attrs.get("told_by_settings", [])
    keys = runs.columns[1 : runs.columns.get_loc("nfe")]
    settings = [key for key in keys if key not in by_settings and key != "num_steps" and is_label(key)]
    telling = [key for key in settings if runs[key].nunique(dropna=False) > 1] or ["var"]
    named = runs[telling].apply(lambda row: _label(row.dropna(), alone=len(telling) == 1), axis=1).astype(str)
    cell = pd.DataFrame({"label": named, "steps": runs["num_steps"], "seed": runs["seed"]})
    again = pd.Series(False, index=runs.index)
    for metric in metric_names(runs):
        scored = runs[metric].notna()
        again[scored] |= cell[scored].duplicated(keep=False)
    return named.where(~again, named + " (" + runs["run"] + ")").map(label)


def _label(settings: pd.Series[str], alone: bool) -> str:
    if alone:
        return str(settings.iloc[0]) if len(settings) else "not set"
    return ", ".join(f"{key}={value}" for key, value in settings.items())


@dataclass(frozen=True)
class Scores:
    """The scores of runs by one metric; each frame has a row for each label and a column for each number of steps.

    Args:
        mean: mean over seeds; NaN where there is no run.
        error: standard deviation over seeds, or standard error of a single run; NaN where neither is known.
        best: whether a cell is the best of its column.
        heading: the metric's name, its direction, and the meaning of the errors.
        label_of_run: the label of each run, which is its row.
    """

    mean: pd.DataFrame
    error: pd.DataFrame
    best: pd.DataFrame
    heading: str
    label_of_run: pd.Series[str]

    @property
    def text(self) -> pd.DataFrame:
        """Cells such as ``2.036 ± 0.043``, empty where there is no run; columns are named ``5 steps``."""
        text = self.mean.map("{:.4g}".format)
        text = text.where(self.error.isna(), text + " ± " + self.error.map("{:.2g}".format))
        return text.where(self.mean.notna(), "").rename(columns="{} steps".format)

    def to_markdown(self) -> str:
        """The table in Markdown, with the best of each column in bold."""
        return str(self.bold("**{}**").rename(index=markdown).to_markdown())

    def to_latex(self) -> str:
        """The table as a ``tabular`` for the package booktabs, with the best of each column in bold."""
        text = self.text.apply(lambda column: column.str.replace("±", r"$\pm$"))
        best = self.best.set_axis(text.columns, axis=1)
        style = text.style.apply(lambda _: best.map(lambda is_best: "textbf:--rwrap;" if is_best else ""), axis=None)
        style = style.format_index(tex, axis=0).hide(names=True, axis=0).hide(names=True, axis=1)
        return str(style.to_latex(hrules=True, column_format="l" + "c" * len(text.columns)))

    def to_terminal(self) -> Table:
        """The table as a rich ``Table``, with the best of each column in bold."""
        shown = Table("", *self.text.columns, title=terminal(self.heading), title_justify="left")
        for name, cells in self.bold("[bold]{}[/bold]").iterrows():
            shown.add_row(terminal(name), *cells)
        return shown

    def bold(self, pattern: str) -> pd.DataFrame:
        """The text of all cells, with a pattern around the best of each column."""
        text = self.text
        return text.where(~self.best.set_axis(text.columns, axis=1), text.map(pattern.format))


def scores(runs: pd.DataFrame, metric: str) -> Scores:
    """Average a metric over the seeds of the runs that `collect` returned."""
    label_of_run = labels(runs)
    scored = runs.assign(label=label_of_run).dropna(subset=[metric])
    grouped = scored.groupby(["label", "num_steps"], sort=False)
    mean, spread, count = (
        getattr(grouped[metric], name)().unstack().sort_index(axis=1) for name in ("mean", "std", "count")
    )
    largest = higher_is_better(runs, metric)
    heading = f"{printable(metric)} ({'higher' if largest else 'lower'} is better)"
    errors = metric + STANDARD_ERROR
    if count.max(axis=None) > 1:
        fewest, most = int(count.min(axis=None)), int(count.max(axis=None))
        heading += f", mean ± std over {most if fewest == most else f'{fewest} to {most}'} seeds"
    elif errors in scored and scored[errors].notna().any():
        spread = grouped[errors].mean().unstack().sort_index(axis=1)
        heading += ", ± standard error"
    best = mean.eq(mean.max() if largest else mean.min())
    rows = list(dict.fromkeys(scored["label"]))
    return Scores(mean.loc[rows], spread.loc[rows], best.loc[rows], heading, label_of_run)


def table(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores as text by label and steps: ``mean`` or ``mean ± std`` over seeds; the best in each column is bold."""
    return scores(runs, metric).bold("**{}**")
