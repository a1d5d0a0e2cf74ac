"""What a run and a sweep leave behind: results, tables, plots and pictures."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

matplotlib.use("Agg")
if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NOT_LABELS = ("sampler.num_steps", "seed")  # the table's columns, and what its cells average over


def write_atomically(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def picture(images: Tensor, path: Path, count: int = 64, scale: int | None = None) -> None:
    """The first samples as a PNG: a grid of images, or the points of vectors.

    Args:
        images: uint8 ``[n, C, H, W]`` with 1 or 3 channels, or ``[n, D]`` with D at least 2.
        path: the file.
        count: how many images.
        scale: enlargement; small images are enlarged where None.
    """
    if images.ndim == 2:
        _scatter(images, path)
        return
    images = images[:count]
    columns = max(1, int(len(images) ** 0.5))
    images = images[: len(images) // columns * columns]
    tile(images.reshape(-1, columns, *images.shape[1:]), scale, line=columns > 1).save(path)


def tile(images: Tensor, scale: int | None = None, line: bool = True) -> Image.Image:
    """A table of images as one picture, small ones enlarged.

    Args:
        images: uint8 ``[rows, columns, C, H, W]`` with 1 or 3 channels.
        scale: enlargement; small images are enlarged where None.
        line: draw one right of and below each image.
    """
    if line:
        images = functional.pad(images, (0, 1, 0, 1), value=96)
    rows, columns, channels, height, width = images.shape
    pixels = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray((pixels[..., 0] if channels == 1 else pixels).contiguous().cpu().numpy())
    scale = scale or max(1, 64 // height)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _scatter(vectors: Tensor, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5))
    x, y = (vectors[:, i].double() / 127.5 - 1 for i in (0, -1))
    axes.scatter(x, y, s=2)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), title=f"{len(vectors)} samples", aspect="equal")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def show_run(results: dict[str, Any]) -> None:
    """Print a run's results as a table on the terminal."""
    table = Table("", results["var"], title="optcov", title_justify="left")
    for key in ("data", "model", "schedule", "sampler", "trajectory", "num_steps", "nfe", "seed"):
        table.add_row(key, str(results[key]))
    table.add_section()
    for name, value in results["metrics"].items():
        error = results["standard_errors"].get(name)
        table.add_row(name, f"[bold]{value:.4g}[/bold]" + ("" if error is None else f" ± {error:.2g}"))
    if "throughput_images_per_s" in results:
        table.add_row("images/s", f"{results['throughput_images_per_s']:.0f}")
    table.add_row("seconds", f"{results['wall_time_s']['total']:.0f}")
    console = Console()
    console.print(table)
    console.print(results["output_dir"], soft_wrap=True, highlight=False)


def collect(folder: Path) -> pd.DataFrame:
    """The results of every run in a folder, a row each, with the overrides that tell them apart."""
    import pandas as pd

    rows = []
    for path in sorted(folder.glob("*/results.json"), key=_natural):
        results = json.loads(path.read_text())
        row: dict[str, Any] = {"run": str(path.parent.relative_to(folder)), **results["overrides"]}
        row |= {key: results[key] for key in ("data", "model", "schedule", "var", "sampler", "trajectory")}
        row |= {"num_steps": results["num_steps"], "nfe": results["nfe"], "seed": results["seed"]} | results["metrics"]
        rows.append(row)
    return pd.DataFrame(rows)


def _natural(path: Path) -> list[str | int]:
    """Sorts job 2 before job 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def labels(runs: pd.DataFrame) -> pd.Series[str]:
    """What tells each run from the others, apart from steps and seed: ``beta``, or ``var=beta, sampler=ddim``."""
    settings = runs.columns[1 : runs.columns.get_loc("nfe")].drop([*NOT_LABELS, "num_steps"], errors="ignore")
    telling = [key for key in settings if runs[key].nunique(dropna=False) > 1] or ["var"]
    if len(telling) == 1:
        return runs[telling[0]].astype(str)
    return runs[telling].apply(lambda row: ", ".join(f"{key}={row[key]}" for key in telling), axis=1)


def metric_names(runs: pd.DataFrame) -> list[str]:
    """The columns of :func:`collect` that follow the seed: the metrics."""
    return [str(name) for name in runs.loc[:, "nfe":].columns if name not in ("nfe", "seed")]


def table(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores as text, label by steps: ``mean``, or ``mean ± std`` over seeds; the best of a column in bold."""
    grouped = runs.assign(label=labels(runs)).groupby(["label", "num_steps"], sort=False)[metric]
    mean, spread, count = (getattr(grouped, name)().unstack() for name in ("mean", "std", "count"))
    mean, spread, count = (frame[sorted(frame.columns)] for frame in (mean, spread, count))
    text: pd.DataFrame = mean.map("{:.4g}".format)
    text = text.where(count < 2, text + " ± " + spread.map("{:.2g}".format))
    text = text.where(mean != mean.min(), "**" + text + "**").where(mean.notna(), "")
    text.columns = [f"{steps} steps" for steps in text.columns]
    return text


def plot(runs: pd.DataFrame, metric: str, path: Path) -> None:
    """The metric against the number of steps, a line for each label, bars over seeds."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for label, rows in runs.assign(label=labels(runs)).groupby("label", sort=False):
        scores = rows.groupby("num_steps")[metric]
        mean = scores.mean()
        axes.errorbar(mean.index, mean, yerr=scores.std().fillna(0), marker="o", capsize=3, label=str(label))
    steps = sorted(runs["num_steps"].unique())
    axes.set(xlabel="steps", ylabel=metric, xscale="log", yscale="log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(folder: Path) -> None:
    """Write ``table.csv``, ``table.md`` and a plot per metric over all runs below a folder, and print the tables."""
    runs = collect(folder)
    if runs.empty:
        log.warning("no run below %s has ended: there is nothing to compare", folder)
        return
    write_atomically(folder / "table.csv", runs.to_csv(index=False))
    sections = []
    for metric in metric_names(runs):
        scores = table(runs, metric)
        over = runs["seed"].nunique()
        heading = f"{metric} (lower is better)" + (f", mean ± std over {over} seeds" if over > 1 else "")
        sections.append(f"### {heading}\n\n{scores.to_markdown()}\n")
        plot(runs, metric, folder / f"{metric}.png")
        shown = Table("", *scores.columns, title=heading, title_justify="left")
        for label, cells in scores.iterrows():
            shown.add_row(str(label), *(_bold(cell) for cell in cells))
        Console().print(shown)
    write_atomically(folder / "table.md", "\n".join(sections))
    log.info("table and plot: %s", folder)


def _bold(cell: str) -> str:
    return f"[bold]{cell.strip('*')}[/bold]" if cell.startswith("**") else cell


class SweepReport(Callback):
    """Ends a multirun with one table and one plot over all its jobs, here and in W&B."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        report(folder)
        settings = config.get("logger", {}).get("wandb")
        if settings is not None and (folder / "table.csv").is_file():
            self._log_to_wandb(folder, settings)

    @staticmethod
    def _log_to_wandb(folder: Path, settings: DictConfig) -> None:
        import pandas as pd
        import wandb

        from optcov.cli.dashboard import wandb_logger

        arguments = {key: settings[key] for key in ("project", "entity", "mode")}
        group = settings.get("group") or folder.name
        run = wandb_logger(**arguments, group=group, tags=["table"], save_dir=str(folder.absolute())).experiment
        run.log({"table": wandb.Table(dataframe=pd.read_csv(folder / "table.csv"))})
        run.log({path.stem: wandb.Image(str(path)) for path in folder.glob("*.png")})
        wandb.finish()
