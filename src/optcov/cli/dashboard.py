"""Weights & Biases: online when the user is logged in and the server answers, otherwise offline; it never asks.

What is logged can be read without W&B, too (``metrics.csv``, ``results.json``, pictures), so that no failure of W&B may
cost a run anything.
"""

from __future__ import annotations

import logging
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from optcov.keys import Config
from optcov.report import collect, labels, metric_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
TAGS = ("var", "sampler", "data", "schedule", "guidance")  # the groups whose choices, if any, a run is tagged with
CURVES = ["mean", "q05", "q95", "upper"]  # of variance.csv: C over pixels and images, and its bound
STEP = "trainer/global_step"  # Lightning's name for the number of optimizer steps
OFFLINE = "logging offline, send it later with `wandb sync`"
UPLOAD_LIMIT = 120.0  # seconds at the end of a run; W&B would wait longer for a server that is gone


class Dashboard(WandbLogger):
    """A W&B run as a Lightning logger; where W&B fails, that is said once and the run goes on.

    Args:
        folder: whose name the run has, and where all waits that is not sent yet.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; the environment's WANDB_MODE goes first.
        settings: further ones of ``wandb.init``.
    Raises:
        ValueError: if the mode is none of these, or is ``online`` and W&B does not start.
    """

    def __init__(self, folder: Path, mode: str, **settings: Any) -> None:
        super().__init__(experiment=_start(mode, dir=str(folder), **settings))
        self._complained = False
        self._moved = "WANDB_DATA_DIR" not in os.environ
        if self._moved:  # where tables wait for `wandb sync`: the home directory, if W&B may choose
            os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "wandb")
        with self._spared():  # Lightning defines the axis of those runs alone that it starts itself
            step = self.experiment.define_metric(STEP)
            for stage in ("mean/*", "variance/*", "classifier/*"):
                self.experiment.define_metric(stage, step_metric=step)
            # the best is the one or the other
            self.experiment.define_metric("track/*", step_metric=step, summary="min,max,last")

    def log_hyperparams(self, params: Any) -> None:
        with self._spared():
            super().log_hyperparams(params)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._spared():
            super().log_metrics(metrics, step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        with self._spared():
            super().log_image(key, images, step, **kwargs)

    def log_run(self, results: dict[str, Any], folder: Path) -> None:
        """What a finished run left in its folder: samples, a row of results beside them, the variance over t."""
        import pandas as pd

        with self._spared():
            import wandb

            columns = ["var", "sampler", "trajectory", "guidance", "num_steps", "nfe"]
            row = {column: results[column] for column in columns} | results["metrics"]
            charts: dict[str, Any] = {}
            if (folder / "samples.png").is_file():
                charts["samples"] = wandb.Image(str(folder / "samples.png"))
                row["samples"] = wandb.Image(str(folder / "samples.png"))
            charts["results"] = wandb.Table(columns=list(row), data=[list(row.values())])
            if (folder / "variance.csv").is_file():
                curve = pd.read_csv(folder / "variance.csv").set_index("t").filter(CURVES)
                charts["variance"] = _lines({str(name): values for name, values in curve.items()}, "variance", "t")
            self.experiment.log(charts)

    def log_sweep(self, folder: Path) -> None:
        """All runs of a sweep: a table with their samples, each metric against steps, the variances over t."""
        import pandas as pd

        with self._spared():
            import wandb

            runs = collect(folder).reset_index(drop=True)
            named = runs.assign(label=labels(runs))
            charts: dict[str, Any] = {}
            for metric in metric_names(runs):
                means = named.pivot_table(metric, "num_steps", "label", sort=False).sort_index()
                curves = {str(label): mean.dropna() for label, mean in means.items()}
                charts[f"{metric}_against_steps"] = _lines(curves, f"{metric} against steps", "steps")
            firsts = named.groupby("label", sort=False)["run"].first()  # of one label, all runs have one variance
            paths = {str(label): folder / run / "variance.csv" for label, run in firsts.items()}
            curves = {
                label: pd.read_csv(path).set_index("t")["mean"] for label, path in paths.items() if path.is_file()
            }
            if curves:
                charts["variance"] = _lines(curves, "variance", "t")
            pictures = [folder / run / "samples.png" for run in runs["run"]]
            samples = [wandb.Image(str(path)) if path.is_file() else None for path in pictures]
            charts["table"] = wandb.Table(dataframe=runs)
            charts["table"].add_column("samples", samples, optional=True)
            self.experiment.log(charts | {path.stem: wandb.Image(str(path)) for path in folder.glob("*.png")})

    def close(self, failed: bool = False) -> None:
        """Finish the run, and say where it is."""
        import wandb

        ended = False
        with self._spared():
            if not self.experiment.offline and not self.experiment.disabled:
                log.info("W&B: %s", self.experiment.url)
            wandb.finish(exit_code=int(failed))
            ended = True
        if not ended:  # leave no broken run to the next job of a sweep
            with suppress(Exception):
                wandb.teardown()
        if self._moved:
            os.environ.pop("WANDB_DATA_DIR", None)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever W&B meets: a full disk, or a service of its own that was killed
            if not self._complained:
                log.warning(
                    "W&B fails (%s: %s): the run goes on without it, and its folder holds all results",
                    type(error).__name__,
                    error,
                )
            self._complained = True


def _lines(curves: Mapping[str, pd.Series[Any]], title: str, x: str) -> Any:
    """W&B's own chart of several lines, from series indexed by x."""
    import wandb

    xs = [curve.index.tolist() for curve in curves.values()]
    ys = [curve.tolist() for curve in curves.values()]
    return wandb.plot.line_series(xs, ys, keys=list(curves), title=title, xname=x)


def wandb_logger(
    project: str,
    save_dir: str,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Mode = "auto",
    config: Config | None = None,
) -> Dashboard:
    """Start a W&B run that has the folder's name, as a Lightning logger.

    Args:
        project, entity: as in ``wandb.init``.
        save_dir: the run's folder.
        group: joins runs in the dashboard; the name of the sweep, in a sweep, where None.
        tags: beside the run's choice of var, sampler, data, schedule and, where it is not none, guidance.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; the environment's WANDB_MODE goes first.
        config: of the run.
    Raises:
        ValueError: if the mode is none of these, or is ``online`` and W&B does not start.
    """
    chosen = {} if config is None else config.choices
    sweep, folder = None if config is None or config.sweep is None else Path(config.sweep), Path(save_dir)
    return Dashboard(
        folder,
        mode,
        project=project,
        entity=entity,
        name=folder.name if sweep is None else f"{sweep.name}/{folder.name}",
        group=group or (None if sweep is None else sweep.name),
        tags=[*(tags or []), *(chosen[option] for option in TAGS if chosen.get(option, "none") != "none")],
    )


def log_sweep(folder: Path, settings: DictConfig) -> None:
    """Log a finished sweep as a W&B run of its own, tagged ``table``, in the group of its jobs.

    Args:
        folder: of the sweep.
        settings: ``logger.wandb`` of its jobs.
    """
    dashboard = Dashboard(
        folder,
        settings.mode,
        project=settings.project,
        entity=settings.entity,
        name=folder.name,
        group=settings.group or folder.name,
        tags=[*settings.tags, "table"],
    )
    dashboard.log_sweep(folder)
    dashboard.close()


def _start(mode: str, **arguments: Any) -> Any:
    """``wandb.init``, offline where the mode is ``auto`` and the server can not be used."""
    import wandb  # a good part of a second, for those who log to it

    mode = os.environ.get("WANDB_MODE", mode)
    if mode not in get_args(Mode):
        raise ValueError(f"logger.wandb.mode = {mode} is unknown: give one of {', '.join(get_args(Mode))}")
    settings = wandb.Settings(silent=True, console="off", finish_timeout=UPLOAD_LIMIT)  # a run ends with its place
    chosen: Any = mode
    if mode == "auto":
        chosen = "online" if logged_in() and reachable() else "offline"
        if chosen == "offline" and logged_in():
            log.warning("W&B: logged in, but %s does not answer: %s", server(), OFFLINE)
    try:
        return wandb.init(**arguments, mode=chosen, settings=settings)
    except wandb.Error as error:  # a wrong key, or a server that answers nothing but its address
        if chosen != "online":
            raise
        if mode == "online":
            raise ValueError(
                f"logger.wandb.mode = online, but W&B does not start ({error}): set auto or offline"
            ) from error
        log.warning("W&B does not start (%s): %s", error, OFFLINE)
        return wandb.init(**arguments, mode="offline", settings=settings)


def server() -> str:
    """The address of W&B's server: the environment's WANDB_BASE_URL, or the public one."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def logged_in() -> bool:
    """Whether a key for the server is in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(server()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def reachable() -> bool:
    """Whether the server answers within three seconds, with whatever."""
    try:
        urllib.request.urlopen(server(), timeout=3)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
