"""The entry points: Hydra around a task, and errors of one sentence."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Task = Literal["train", "sample", "evaluate"]
CONFIGS = {"train": "config", "sample": "sample", "evaluate": "evaluate", "compare": "report"}  # of task, in conf/
log = logging.getLogger(__name__)


def register_resolvers() -> None:
    """``optcov_unique``: four hex digits, fixed within a process; ``optcov_report_dir``: of runs, or another folder."""
    OmegaConf.register_new_resolver("optcov_report_dir", report_dir, replace=True)
    OmegaConf.register_new_resolver("optcov_unique", lambda: os.urandom(2).hex(), use_cache=True, replace=True)


def report_dir(runs: Any, otherwise: str) -> str:
    """Where a report goes: of one multirun into its folder, else into one of its own."""
    is_multirun = isinstance(runs, str) and (Path(runs) / "multirun.yaml").is_file()
    return str(runs) if is_multirun else otherwise


def main(script_task: Task, script: str) -> None:
    """Run a task with the command line's overrides.

    Args:
        script_task: what to run; ``evaluate`` with ``runs=`` reports over these.
        script: the calling file, beside which ``conf`` lies.
    """
    register_resolvers()
    # large tensors come in large pages: without, 7 % of a U-Net's time on a CPU goes into touching new memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Hydra shows the frames of a failed job unless it is told to raise: it raises here, and _sentence decides
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1" and "OPTCOV_CHILD" not in os.environ
    os.environ.update(HYDRA_FULL_ERROR="1", OPTCOV_CHILD="1")
    failed: list[Exception] = []
    conf = Path(script).resolve().parent / "conf"
    keys = {argument.partition("=")[0] for argument in sys.argv[1:]}
    reports = script_task == "evaluate" and "runs" in keys
    task = "compare" if reports else script_task

    @hydra.main(version_base="1.3", config_path=str(conf), config_name=CONFIGS[task])
    def entry(cfg: DictConfig) -> None:
        from optcov.cli import tasks  # torch and Lightning take seconds: a typo is answered before

        try:
            getattr(tasks, task)(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error("%s", _sentence(error) or f"{type(error).__name__}: {error}")  # in the job's own log
                raise  # Hydra finishes the other jobs, and raises it again
            failed.append(error)  # past Hydra, which would add a line of its own

    try:
        if reports and "run" in keys:
            from optcov.cli.errors import ConfigError

            raise ConfigError(
                "run and runs are both given: run=FOLDER scores a run again, runs=FOLDER reports over runs"
            )
        if task in ("sample", "evaluate"):
            sys.argv[1:] = with_run_overrides(sys.argv[1:])
        entry()
        if failed:
            raise failed[0]
    except KeyboardInterrupt as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several processes speaks
            sys.exit(1)
        sys.exit(f"stopped: {str(error) or 'the same command continues from the last checkpoint'}")
    except Exception as error:
        sentence = None if wants_trace else _sentence(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def with_run_overrides(arguments: list[str]) -> list[str]:
    """Add the overrides of the run named by ``run=PATH`` to the command line's, which go first.

    Choosing another option of a group drops what the run had set inside it. A run has checkpoints of its own, whatever
    it was given.
    """
    from optcov.cli.errors import ConfigError

    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if not runs and not any(argument.startswith("-") for argument in arguments):
        raise ConfigError(
            "run is missing: give run=FOLDER, the folder that train.py printed when it ended (or, to evaluate.py, "
            "runs=FOLDER of a multirun or runs=[FOLDER,FOLDER] for a report)"
        )
    if not runs:  # --help and its kind
        return arguments
    saved = Path(runs[0]) / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise ConfigError(f"run = {runs[0]} is no folder of a run (no {saved}): give one that train.py has printed")
    parser = OverridesParser.create()
    given = [o.key_or_group for o in parser.parse_overrides([a for a in arguments if not a.startswith("-")])]
    kept = []
    for line in map(str, OmegaConf.load(saved)):
        key = parser.parse_override(line).key_or_group
        of_the_run = key == "output_dir" or key.startswith("hydra") or key.endswith("_ckpt")
        if key not in given and key.partition(".")[0] not in given and not of_the_run:
            kept.append(line)
    return arguments + kept


def _sentence(error: Exception) -> str | None:
    """What to tell the user, or None for an error that is ours to mend and needs its frames."""
    from optcov.cli.errors import ConfigError

    if isinstance(error, (ConfigError, CompactHydraException, OmegaConfBaseException)):
        return str(error)
    if type(error).__name__ == "CheckpointError":
        return str(error)
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "iostream" in str(error)):
        return "a file could not be written whole (as on a full disk): free space, or set hydra.run.dir or cache_dir"
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename or "the output folder"
        remedy = "free space, mend its rights, or set hydra.run.dir or cache_dir"
        return f"{place} can not be written or read ({error.strerror}): {remedy}"
    return None
