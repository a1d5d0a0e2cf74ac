"""``metrics.csv`` in a run's folder, which a resumed run continues where its fits go on."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from optcov.files import write_atomically

log = logging.getLogger(__name__)
FLUSH = 100  # rows


class MetricsCSV(Logger):
    """Writes a row for each call of `log_metrics`; rows of an interrupted run in the same folder are kept.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._rows: list[dict[str, Any]] | None = None
        self._written = 0

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, those of an interrupted run first."""
        if self._rows is None:
            self._rows = self._read()
            self._written = len(self._rows)
        return self._rows

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the folder holds the config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items()} | {"step": step}
        if self.rows and set(map(str, row.items())) <= set(map(str, self.rows[-1].items())):
            return  # already written with a checkpoint; as text, so that NaN equals NaN
        self.rows.append(row)
        if len(self.rows) - self._written >= FLUSH:
            self.save()

    @rank_zero_only
    def log_results(self, row: Mapping[str, Any], step: int) -> None:
        """Write the results of a run in the place of those that a run, killed before its end, may have written."""
        self._rows = [each for each in self.rows if _of_a_fit(each)]
        self.log_metrics(row, step)
        self.save()

    @rank_zero_only
    def resume(self, stage: str, step: int) -> None:
        """Drop what a fit logged after the step from which it goes on, and what followed that fit.

        Args:
            stage: the prefix of its metrics.
            step: number of optimizer steps taken.
        """

        def stays(row: Mapping[str, Any]) -> bool:
            names = _names(row)
            losses, tracked = (
                any(name.startswith(prefix) for name in names) for prefix in (f"{stage}/", f"track/{stage}/")
            )
            if losses:
                return int(row["step"]) < step  # logged by the number of steps before
            if tracked:
                return int(row["step"]) <= step
            return _of_a_fit(row)

        self._rows = [row for row in self.rows if stays(row)]

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        names = sorted({name for row in self.rows for name in row})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue())
        self._written = len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        try:
            with self.path.open(newline="") as file:
                rows = [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
            if all(None not in row and row["step"].isdecimal() for row in rows):
                return rows
        except (OSError, KeyError, AttributeError, UnicodeDecodeError, csv.Error):
            pass
        log.warning("%s is damaged: it begins anew", self.path)
        return []


def _names(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in row.items() if value not in ("", None)]


def _of_a_fit(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a fit, and not the results of a finished run."""
    return any("/" in name for name in _names(row))
