"""What a run's loggers are told: its settings at the start, its scores, and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from optcov.errors import sentence
from optcov.training.csv_log import MetricsCSV
from optcov.training.wandb import WandbRun

log = logging.getLogger(__name__)


@contextmanager
def told(loggers: Sequence[Logger], settings: dict[str, Any]) -> Iterator[None]:
    """Tell loggers the settings of the run inside, and how it ends.

    Args:
        loggers: of this run; `MetricsCSV` is not told the settings, because its folder holds them.
        settings: the run's config.
    """
    try:
        for logger in loggers:
            if not isinstance(logger, MetricsCSV):
                logger.log_hyperparams(settings)
        yield
    except BaseException:
        for logger in loggers:
            try:
                _end(logger, "failed")
            except Exception as error:  # such as the full disk that ended the run; the user is told why that ended
                log.warning("%s: %s", type(logger).__name__, sentence(error))
        raise
    for logger in loggers:
        _end(logger, "success")


def _end(logger: Logger, status: str) -> None:
    logger.finalize(status)
    if isinstance(logger, WandbRun):
        logger.close(failed=status == "failed")


def log_results(
    loggers: Sequence[Logger], results: dict[str, Any], step: int, folder: Path, write: Callable[[], None]
) -> None:
    """Tell loggers the scores of a run.

    Args:
        loggers: `MetricsCSV` comes before ``write``, with which a run is complete; the others come after it.
        results: the content of ``results.json``.
        step: of the optimizer, to which the scores belong.
        folder: of the run, which W&B keeps.
        write: writes ``results.json``.
    """
    row = {key: results[key] for key in ("num_steps", "nfe", "ne") if key in results} | results["metrics"]
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.log_results(row, step)
    write()
    for logger in loggers:
        if not isinstance(logger, MetricsCSV):
            logger.log_metrics(row, step)
        if isinstance(logger, WandbRun):
            logger.log_run(results, folder)
