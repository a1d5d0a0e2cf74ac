"""Weights & Biases as a logger: online when the user is logged in, otherwise offline; it never asks.

Everything logged is also in the run's folder (``metrics.csv``, ``results.json``, pictures), so a failure of W&B never
costs a run anything.
"""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from optcov.files import write_atomically
from optcov.keys import Config
from optcov.report import collect, labels, metric_names
from optcov.wording import first_line

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
TAGS = ("var", "sampler", "data", "schedule", "guidance")  # groups whose choices become tags of a run
CURVES = ["mean", "q05", "q95", "upper"]  # columns of variance.csv: C over pixels and images, and its bound
STEP = "trainer/global_step"  # Lightning's name for the number of optimizer steps
START_LIMIT = 20.0  # seconds that the server may take to answer at the start of a run
UPLOAD_LIMIT = 120.0  # seconds at the end of a run; W&B itself would wait longer for an unreachable server


class WandbRun(WandbLogger):
    """A W&B run as a Lightning logger; an error in W&B is reported once, and the run continues.

    A folder has one W&B run: a command that is repeated in it goes on with that run.

    Args:
        folder: the run's folder, where W&B keeps data not yet sent.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; the environment's WANDB_MODE takes precedence.
        settings: further arguments of ``wandb.init``.
    Raises:
        ValueError: if the mode is none of these, or is ``online`` and W&B does not start.
    """

    def __init__(self, folder: Path, mode: str, **settings: Any) -> None:
        super().__init__(experiment=_start(mode, dir=str(folder), id=_id(folder), **settings))
        self._complained = False
        self._moved = "WANDB_DATA_DIR" not in os.environ
        if self._moved:  # keep tables that await `wandb sync` here; the default is the home directory
            os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "wandb")
        with self._spared():  # Lightning defines the step axis only for runs that it starts itself
            step = self.experiment.define_metric(STEP)
            for stage in ("mean/*", "variance/*", "classifier/*"):
                self.experiment.define_metric(stage, step_metric=step)
            # the best score is the smallest or the largest
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
        """Log the output of a finished run: its samples with a row of results, and the variance over t."""
        import pandas as pd

        with self._spared():
            import wandb

            columns = ["var", "sampler", "trajectory", "guidance", "num_steps", "nfe", "ne"]
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
        """Log all runs of a sweep: a table with their samples, each metric against steps, and the variances over t."""
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
            firsts = named.groupby("label", sort=False)["run"].first()  # all runs of a label have the same variance
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
        """Finish the run, and log its address."""
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
        except Exception as error:  # any failure of W&B: a full disk, or a service process that was killed
            if not self._complained:
                log.warning(
                    "W&B failed (%s: %s): the run continues without it, and its folder has all results",
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
) -> WandbRun:
    """Start a W&B run, named after the run's folder, as a Lightning logger.

    Args:
        project, entity: as in ``wandb.init``.
        save_dir: the run's folder.
        group: groups runs in the dashboard; None for the sweep's name, in a sweep.
        tags: added to the run's choices of var, sampler, data, schedule and, unless it is none, guidance.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; the environment's WANDB_MODE takes precedence.
        config: the run's config.
    Raises:
        ValueError: if the mode is none of these, or is ``online`` and W&B does not start.
    """
    chosen = {} if config is None else config.choices
    sweep, folder = None if config is None or config.sweep is None else Path(config.sweep), Path(save_dir)
    return WandbRun(
        folder,
        mode,
        project=project,
        entity=entity,
        name=folder.name if sweep is None else f"{sweep.name}/{folder.name}",
        group=group or (None if sweep is None else sweep.name),
        tags=[*(tags or []), *(chosen[option] for option in TAGS if chosen.get(option, "none") != "none")],
    )


def log_sweep(folder: Path, settings: DictConfig) -> None:
    """Log a finished sweep as a separate W&B run, tagged ``table``, in the group of its jobs.

    Args:
        folder: the sweep's folder.
        settings: ``logger.wandb`` of its jobs.
    """
    run = WandbRun(
        folder,
        settings.mode,
        project=settings.project,
        entity=settings.entity,
        name=folder.name,
        group=settings.group or folder.name,
        tags=[*settings.tags, "table"],
    )
    run.log_sweep(folder)
    run.close()


def _start(mode: str, **arguments: Any) -> Any:
    """Call ``wandb.init``; in mode ``auto``, go offline if the user is not logged in or the server does not answer."""
    import wandb  # takes most of a second

    mode = os.environ.get("WANDB_MODE", mode)
    if mode not in get_args(Mode):
        raise ValueError(f"logger.wandb.mode must be one of {', '.join(get_args(Mode))} (got {mode})")
    settings = wandb.Settings(silent=True, console="off", init_timeout=START_LIMIT, finish_timeout=UPLOAD_LIMIT)
    chosen: Any = mode if mode != "auto" else "online" if logged_in() else "offline"
    try:
        return wandb.init(**arguments, mode=chosen, settings=settings, resume="allow" if chosen == "online" else None)
    except wandb.Error as error:  # a wrong key, or a server that does not answer
        if chosen != "online":
            raise
        reason = first_line(error)
        if mode == "online":
            raise ValueError(
                f"logger.wandb.mode must be auto or offline here (got online), because W&B does not start ({reason}): "
                "set logger.wandb.mode=auto"
            ) from error
        log.warning("W&B does not start (%s): logging offline; upload later with `wandb sync`", reason)
        wandb.teardown()  # its service believes that the run has begun
        return wandb.init(**arguments, mode="offline", settings=settings)


def _id(folder: Path) -> str:
    """The id of a folder's W&B run, which is kept in it; an agent of W&B's sweeps gives its own."""
    if given := os.environ.get("WANDB_RUN_ID"):
        return given
    path = folder / "wandb" / "run_id"
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[a-z0-9]{8}", known := path.read_text()):
            return known
    made = secrets.token_hex(4)
    with suppress(OSError):  # what is not kept is another run next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, made)
    return made


def logged_in() -> bool:
    """Whether the environment or the netrc file holds a key for W&B's server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
