"""The entry points: Hydra around a task, and errors of one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Task = Literal["train", "sample", "evaluate"]


def register_resolvers() -> None:
    """``optcov_unique``: four hex digits, fixed within a process."""
    OmegaConf.register_new_resolver("optcov_unique", lambda: os.urandom(2).hex(), use_cache=True, replace=True)


def main(task: Task, script: str) -> None:
    """Run a task with the command line's overrides.

    Args:
        task: what to run.
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

    @hydra.main(version_base="1.3", config_path=str(conf), config_name="config" if task == "train" else task)
    def entry(cfg: DictConfig) -> None:
        from optcov.cli import tasks  # torch and Lightning take seconds: a typo is answered before

        try:
            getattr(tasks, task)(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra finishes the other jobs, and raises it again
            failed.append(error)  # past Hydra, which would add a line of its own

    try:
        if task != "train":
            sys.argv[1:] = with_run_overrides(sys.argv[1:])
        entry()
        if failed:
            raise failed[0]
    except KeyboardInterrupt as error:
        sys.exit(f"stopped{f': {error}' if str(error) else ''}; the same command continues from the last checkpoint")
    except Exception as error:
        sentence = None if wants_trace else _sentence(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def with_run_overrides(arguments: list[str]) -> list[str]:
    """Add the overrides of the run named by ``run=PATH`` to the command line's, which go first.

    Choosing another option of a group drops what the run had set inside it.
    """
    from optcov.cli.errors import ConfigError

    runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if not runs and not any(argument.startswith("-") for argument in arguments):
        raise ConfigError("run is missing: give run=FOLDER, the folder that train.py printed when it ended")
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
        of_the_run = key == "output_dir" or key.startswith("hydra")
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
