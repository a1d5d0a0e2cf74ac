"""Runs on disk: finds their folders, reads ``results.json``, and joins them in one data frame."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optcov.foreign import DamagedError, printable, read_json, read_yaml
from optcov.upgrade import CHOICES, upgrade

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1  # version of results.json; increase it when a key changes its meaning
STANDARD_ERROR = "_se"  # suffix of a column with the standard errors of another
COLUMNS = ("run", "num_steps", "nfe", "ne", "seed")  # every frame has these columns, so no metric may have their names
MAX_METRICS, MAX_STEPS, MAX_SIDE = 200, 10**9, 10**6
Count = Annotated[int | float, Field(ge=0, le=10**12)]  # what is larger overflows in tables, or on the axes of plots
Score = Annotated[float, Field(ge=-1e100, le=1e100)]


class Results(BaseModel):
    """The content of ``results.json``; every further string is the option chosen in a config group.

    Args:
        metrics: scores by name; each name ends in the number of samples.
        standard_errors: standard errors by metric, for metrics that provide them within one run.
        higher_is_better: metrics for which larger is better.
        overrides: settings from the command line, inside groups and at the top level.
        files: SHA-256 of the other files in the run's folder that a report reads, by name.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    metrics: Annotated[dict[str, Score], Field(max_length=MAX_METRICS)]
    standard_errors: dict[str, Score] = {}
    higher_is_better: list[str] = []
    var: Annotated[str, Field(min_length=1)]
    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    nfe: Count
    ne: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    overrides: dict[str, str] = {}
    data_shape: list[Annotated[int, Field(ge=1, le=MAX_SIDE)]] | None = None
    num_samples: Annotated[int, Field(ge=1, le=10**12)] | None = None
    files: dict[str, str] = {}
    labelled: bool = False
    reference: dict[str, str] | str | None = None
    throughput_images_per_s: Score | None = None
    wall_time_s: dict[str, Score] = {}
    git_revision: str | None = None
    versions: dict[str, str] = {}
    device: str | None = None
    output_dir: str | None = None

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            ValueError: if it is damaged or has another format; the message is one sentence.
        """
        remedy = "run it again, or leave this folder out"
        try:
            content = read_json(path)
            if not isinstance(content, dict):
                raise DamagedError("it is not a JSON object")
            version = content.get("format", FORMAT)  # the first files had no format
            if version != FORMAT:
                raise ValueError(f"runs: format of {path} must be {FORMAT} (got {printable(version)}): {remedy}")
            found = cls.model_validate(content)
            if strange := [name for name in (*found.metrics, *found.standard_errors) if name in COLUMNS]:
                raise DamagedError(f"no metric is named {strange[0]}")
            return found
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"runs: {path} is damaged ({printable(key)}: {first['msg'].lower()}): {remedy}") from error
        except DamagedError as error:
            raise ValueError(f"runs: {path} is damaged ({error}): {remedy}") from error

    @property
    def choices(self) -> dict[str, str]:
        """The option chosen in each group."""
        extra = (self.model_extra or {}).items()
        others = {key: value for key, value in extra if isinstance(value, str) and key not in (*COLUMNS, *self.metrics)}
        return {"var": self.var, **CHOICES, **others}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: its folder.
        results: its results.
    """

    folder: Path
    results: Results

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of the run; empty if its folder has none."""
        path = self.folder / ".hydra" / "config.yaml"
        try:
            saved = read_yaml(path) if path.exists() else None
        except DamagedError as error:
            raise ValueError(f"runs: {path} is damaged ({error}): run it again, or leave this folder out") from error
        return upgrade(saved) if isinstance(saved, dict) else {}

    def setting(self, key: str) -> str | None:
        """A setting by its full key, such as ``sampler.eta``; None if the run does not have it."""
        if key in self.results.overrides:
            return self.results.overrides[key]
        saved: Any = self.config
        for part in key.split("."):
            if not isinstance(saved, dict) or part not in saved:
                return None
            saved = saved[part]
        return str(saved)


@dataclass(frozen=True)
class Runs:
    """Runs to compare.

    Args:
        base: the common folder, to which run names are relative.
        ended: finished runs, in natural order within each source.
        unfinished: folders of runs without results, each with the last line of its log.
    """

    base: Path
    ended: list[Run]
    unfinished: list[tuple[Path, str]]

    def name(self, folder: Path) -> str:
        """A run's folder relative to the base."""
        return os.path.relpath(folder, self.base)

    def frame(self) -> pd.DataFrame:
        """A data frame with a row for each finished run; see `collect`."""
        import pandas as pd

        keys = dict.fromkeys(key for run in self.ended for key in run.results.overrides if key not in COLUMNS)
        choices = dict.fromkeys(key for run in self.ended for key in run.results.choices)
        metrics = dict.fromkeys(name for run in self.ended for name in run.results.metrics)
        with_errors = {name for run in self.ended for name in run.results.standard_errors}
        trainers = [trainer for run in self.ended if isinstance(trainer := run.config.get("trainer"), dict)]
        if known := len(trainers) == len(self.ended):
            names = dict.fromkeys(name for trainer in trainers for name in trainer)
            differing = [name for name in names if any(each.get(name) != trainers[0].get(name) for each in trainers)]
            keys |= dict.fromkeys(f"trainer.{name}" for name in differing)
        rows = []
        for run in self.ended:
            results = run.results
            row: dict[str, Any] = {"run": self.name(run.folder), **{key: run.setting(key) for key in keys}}
            row |= {key: results.choices.get(key) for key in choices}
            row |= {"num_steps": results.num_steps, "nfe": results.nfe, "ne": results.ne, "seed": results.seed}
            for name in metrics:
                row[name] = results.metrics.get(name)
                if name in with_errors:
                    row[name + STANDARD_ERROR] = results.standard_errors.get(name)
            rows.append(row)
        frame = pd.DataFrame(rows)
        frame.attrs["told_by_settings"] = ["trainer"] if known else []
        frame.attrs["higher_is_better"] = sorted({name for run in self.ended for name in run.results.higher_is_better})
        return frame


def collect(source: Path | str | Sequence[Path | str]) -> pd.DataFrame:
    """Read the results of runs into a data frame with one row per run.

    Args:
        source: as for `gather`.
    Returns:
        A frame with the columns ``run`` (the folder), overrides, the option chosen in each group, ``num_steps``,
        ``nfe``, ``ne``, ``seed``, and the metrics.  The standard errors of a metric follow it in a column whose name
        ends in ``_se``.  ``frame.attrs["higher_is_better"]`` lists the metrics for which larger is better;
        ``frame.attrs["told_by_settings"]`` lists the groups whose option adds nothing to the columns of its settings.
    Raises:
        ValueError: in the same cases as `gather`.
    """
    return gather(source).frame()


def gather(source: Path | str | Sequence[Path | str]) -> Runs:
    """Find runs and read their results.

    Args:
        source: the folder of a run or of a multirun, a pattern like ``outputs/train/*``, or several of them.
    Raises:
        ValueError: if a folder contains no run, or results cannot be read; the message is one sentence.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ValueError("runs must not be empty (got []): give folders of runs or multiruns")
    folders = dict.fromkeys(run.resolve() for each in sources for run in _runs_in(str(each)))
    ended = [Run(folder, Results.read(folder / "results.json")) for folder in folders if _has_ended(folder)]
    unfinished = [(folder, _last_words(folder)) for folder in folders if not _has_ended(folder)]
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    return Runs(base, ended, unfinished)


def _runs_in(source: str) -> Iterator[Path]:
    """The run folders, finished or not, that a path or pattern names."""
    path = Path(source)
    if path.exists() or not re.search(r"[*?\[]", source):
        if not path.is_dir():
            raise ValueError(f"runs = {source} is not a folder: give the folder of a run or of a multirun")
        found = list(_runs_below(path))
        if not found:
            raise ValueError(
                f"runs = {source} contains no run: give the folder of a run, which has a results.json, or of a multirun"
            )
        yield from found
        return
    root = Path(path.anchor)
    matches = _in_order(root.glob(str(path.relative_to(root))))
    found = [run for match in matches if match.is_dir() for run in _runs_below(match)]
    if not found:
        raise ValueError(f"runs = {source} matches no run: give the folder of a run or of a multirun")
    yield from found


def _runs_below(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    else:
        yield from (job for job in _in_order(folder.iterdir()) if _is_run(job))


def _is_run(folder: Path) -> bool:
    """Whether a folder belongs to a run, finished or not; a refused run leaves only its log."""
    return _has_ended(folder) or (folder / ".hydra").is_dir() or (folder / "train.log").is_file()


def _has_ended(folder: Path) -> bool:
    return (folder / "results.json").exists()


def _last_words(folder: Path) -> str:
    lines = [line for log in sorted(folder.glob("*.log")) for line in _tail(log).splitlines() if line.strip()]
    return printable(lines[-1].partition(" - ")[2].strip() or lines[-1])[:LONGEST] if lines else "no log"


def _tail(path: Path) -> str:
    """The last lines of a log; empty for a link, which may lead out of the folder."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * LONGEST))
        return file.read(4 * LONGEST).decode(errors="replace")


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths in natural order: job 2 comes before job 10."""
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in _PARTS.split(str(path))])


LONGEST = 1000  # characters of a log line that are shown
_PARTS = re.compile(r"(\d+)")
