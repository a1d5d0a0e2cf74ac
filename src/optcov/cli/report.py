"""Writes a report when asked, and at the end of a multirun; the report itself is in `optcov.report`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from optcov.errors import config_errors

log = logging.getLogger(__name__)


def report(sources: str | list[str], folder: Path) -> None:
    """Write a report that compares runs.

    Args:
        sources: folders of runs or multiruns, or patterns that match them.
        folder: the folder to write the report to.
    """
    from optcov.report import check_comparable, gather, write_report

    with config_errors("runs"):
        runs = gather(sources)
        check_comparable(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_report(runs, folder)


class SweepReport(Callback):
    """Updates the tables of a multirun as its jobs end, and finally writes the report on all of them, also to W&B.

    If a job fails, Hydra does not reach the end of the multirun.  The tables then exist, and
    ``evaluate.py runs=FOLDER`` writes the rest.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from optcov.report import gather, write_tables  # imports PyTorch, which a refused command does not need

        folder = Path(config.hydra.sweep.dir)
        # jobs may end at the same time; the last one to get the lock sees the results of all others
        with FileLock(folder / ".lock"):
            runs = gather(folder)
            if runs.ended:
                write_tables(runs, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from optcov.report import gather, write_report

        folder = Path(config.hydra.sweep.dir)
        runs = gather(folder)
        if not runs.ended:
            log.warning("no run below %s has ended: there is nothing to compare", folder)
            return
        write_report(runs, folder)
        settings = config.get("logger", {}).get("wandb")
        if settings is not None:
            from optcov.training.wandb import log_sweep  # imports Lightning

            log_sweep(folder, settings)
