"""Plots: a metric against the number of steps, and the variance of strategies against time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optcov.foreign import plotted
from optcov.report.picture import save_png
from optcov.report.table import scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>"


def plot(runs: pd.DataFrame, metric: str, path: Path) -> None:
    """Plot a metric against the number of steps, and against network calls if they differ; one line per label.

    Args:
        runs: a frame from `optcov.report.collect`.
        metric: one of `optcov.report.metric_names`.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    found = scores(runs, metric)
    labelled = runs.assign(label=found.label_of_run).dropna(subset=[metric])
    abscissas = {"steps": "num_steps"}
    if (labelled["nfe"] != labelled["num_steps"]).any():
        abscissas["network calls (nfe)"] = "nfe"
    figure = Figure(figsize=(5.5 * len(abscissas) + 1, 4.2), layout="constrained")
    for axes, (title, column) in zip(
        figure.subplots(1, len(abscissas), squeeze=False)[0], abscissas.items(), strict=True
    ):
        for i, label in enumerate(found.mean.index):
            mean, error = found.mean.loc[label].dropna(), found.error.loc[label]
            x = labelled[labelled["label"] == label].groupby("num_steps")[column].mean()
            bars = error[mean.index].fillna(0) if error.notna().any() else None
            axes.errorbar(
                x[mean.index], mean, yerr=bars, marker=MARKERS[i % 10], capsize=3,
                color=f"C{i % 10}", label=plotted(label), linewidth=1.5, markersize=5,
            )  # fmt: skip
        axes.set(xlabel=title, xscale="log")
        _ticks_at(axes, sorted(labelled[column].unique()))
        _scale(axes, found.mean)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(plotted(metric))
    figure.suptitle(plotted(found.heading), fontsize="medium")
    legend_below(figure)
    save_png(figure, path)


def plot_variance(curves: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Plot each strategy's ``Cov[x_0 | x_t]`` and the variance of its steps, with the bounds.

    Args:
        curves: curves by label, with the columns of `optcov.variance.profile.variance_profile`.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    covariance, step = figure.subplots(1, 2)
    bounds = {
        (*curve["upper"], *curve["step_upper"]): curve for curve in curves.values()
    }.values()  # one for each schedule and stride
    for i, curve in enumerate(bounds):
        line: dict[str, Any] = {"color": "0.45", "linewidth": 1}
        covariance.plot(curve["t"], curve["upper"], "--", **line, label="bounds" if i == 0 else None)
        step.plot(curve["t"], curve["step_upper"], "--", **line)
        step.plot(curve["t"], curve["step_lower"], "--", **line)
    for i, (label, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": f"C{i % 10}", "label": plotted(label)}
        positive = curve[["mean", "q05", "q95"]].where(curve[["mean", "q05", "q95"]] > 0)
        marks = {"marker": MARKERS[i % 10], "markersize": 4, "markevery": (i % 4, 4)}
        covariance.plot(curve["t"], positive["mean"], **style, **marks)
        if len(curves) == 1:
            between = {"alpha": 0.2, "linewidth": 0, "label": "5 % to 95 % of pixels"}
            covariance.fill_between(curve["t"], positive["q05"].fillna(0), positive["q95"], **between)
        step.plot(curve["t"], curve["step_mean"], **style, **marks)
    highest = max(curve["upper"].max() for curve in bounds)
    means = np.concatenate([*(curve["mean"] for curve in curves.values()), [highest]])
    covariance.set_ylim(max(means[means > 0].min(), 1e-6 * highest) / 2, highest * 2)
    covariance.set_title("covariance of x_0 given x_t, mean over pixels", fontsize="medium")
    strides = sorted({f"{(curve['t'] - curve['s']).max():.3g}" for curve in curves.values()})
    step.set_title(f"variance of the DDPM step to max(t - {' or '.join(strides)}, 1/N)", fontsize="medium")
    for axes in (covariance, step):
        axes.set(xlabel="t", xscale="log", yscale="log")
        axes.minorticks_off()  # minor ticks would take half of the drawing time
        axes.grid(alpha=0.3)
    legend_below(figure)
    save_png(figure, path)


def _ticks_at(axes: Axes, values: Iterable[int]) -> None:
    """Put ticks at these values of a logarithmic axis, leaving out those that would touch the previous one."""
    from matplotlib.ticker import NullLocator

    ascending = list(values)
    gap = math.log(ascending[-1] / ascending[0]) / 14
    shown: list[int] = []
    for value in ascending:
        if not shown or math.log(value / shown[-1]) > gap:
            shown.append(value)
    axes.set_xticks(shown, [str(value) for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _scale(axes: Axes, values: pd.DataFrame) -> None:
    """Make the axis logarithmic if the values span a factor of 4 or more."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    smallest, largest = (float(each) for each in np.nanquantile(values.to_numpy(), [0, 1]))
    if smallest <= 0 or largest / smallest < 4:
        return
    axes.set_yscale("log")
    subs = (1, 2, 5) if largest / smallest > 20 else (1, 1.5, 2, 3, 4, 5, 7)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def legend_below(figure: Figure) -> None:
    """Put one legend for all axes below them, so that it covers no curve."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    width = 0.075 * max(map(len, names)) + 0.6  # inches per entry
    columns = max(1, min(len(names), int(figure.get_figwidth() / width)))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
