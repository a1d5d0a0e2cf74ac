"""The entry points: compose and check a config before importing anything slow, and report errors in one sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from optcov.cli.check import check
from optcov.cli.explain import explain
from optcov.cli.reference import by_name
from optcov.cli.restore import CONF, restored, store_run
from optcov.errors import ConfigError, config_errors, must, of_the_disk, sentence
from optcov.foreign import printable
from optcov.keys import Config
from optcov.lock import InUseError
from optcov.run_folder import Saved
from optcov.signals import TERMINATED, UNFINISHED, Terminated, Unfinished, terminable
from optcov.wording import first_line

Task = Literal["train", "sample", "evaluate", "report", "prepare"]
CONFIGS = {"train": "config", "prepare": "config"}  # the config of a task, if its name is not the task's
log = logging.getLogger(__name__)


def register_resolvers() -> None:
    """Register ``optcov_unique`` (eight hex digits, one value a process) and ``optcov_report_dir`` (`report_dir`)."""
    OmegaConf.register_new_resolver("optcov_report_dir", report_dir, replace=True)
    OmegaConf.register_new_resolver("optcov_unique", lambda: os.urandom(4).hex(), use_cache=True, replace=True)


def report_dir(runs: Any, otherwise: str) -> str:
    """The folder of a report: the multirun's own folder if there is just one multirun, otherwise ``otherwise``."""
    is_multirun = isinstance(runs, str) and (Path(runs) / "multirun.yaml").is_file()
    return str(runs) if is_multirun else otherwise


def command() -> None:
    """``optcov TASK KEY=VALUE ...``."""
    # Lightning starts the other processes of a job with the remaining arguments
    task = os.environ.get("OPTCOV_TASK", "") if "LOCAL_RANK" in os.environ else ""
    task = task or (sys.argv.pop(1) if len(sys.argv) > 1 else "--help")
    usage = f"optcov {{{','.join(get_args(Task))}}} KEY=VALUE ...   (optcov train --help lists groups and keys)"
    if task in ("--help", "-h"):
        print(f"usage: {usage}")
        return
    if task not in get_args(Task):
        sys.exit(f"error: {task} is not a task: {usage}")
    os.environ["OPTCOV_TASK"] = task
    main(task)  # type: ignore[arg-type]


def main(task: Task) -> None:
    """Run a task with the overrides of the command line; ``evaluate`` with ``runs=`` writes a report."""
    register_resolvers()
    # allocate large tensors in large pages: otherwise 7 % of a U-Net's time on a CPU goes into touching new memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with terminable():
            _run(task, sys.argv[1:])
    except Terminated as error:
        _stop(str(error) or "stopped by SIGTERM: the same command continues where it stopped", TERMINATED)
    except (InUseError, Unfinished) as error:
        _stop(str(error), UNFINISHED)
    except KeyboardInterrupt as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # only the first process prints the message
            sys.exit(1)
        sys.exit(f"stopped: {str(error) or 'the same command continues from the last checkpoint'}")
    except Exception as error:
        if wants_trace:
            raise
        sys.exit(f"error: {sentence(error)}")


def _stop(words: str, status: int) -> NoReturn:
    """End with a status that tells a scheduler to give the same command again."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # only the first process prints the message
        print(printable(words), file=sys.stderr)
    sys.exit(status)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}: give KEY=VALUE, or flags that --help lists")


def _run(task: Task, arguments: Sequence[str]) -> None:
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print the usage, three lines of it
    args = parser.parse_intermixed_args(arguments)  # flags may stand among the overrides
    overrides = by_name(task, args.overrides)
    keys = {override.partition("=")[0] for override in overrides}
    if task == "evaluate" and "runs" in keys:
        if "run" in keys:
            raise ConfigError("run and runs are both given: run=FOLDER scores a run, runs=FOLDER compares runs")
        task = "report"
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if task in ("sample", "evaluate") and "run" not in keys and not shows:
        beside = ", or runs=[FOLDER,FOLDER] for a report" if task == "evaluate" else ""
        raise must("run", "the folder of a run", "nothing", f"give run=FOLDER, as train.py printed it{beside}")
    if args.config_dir is not None:
        if not Path(args.config_dir).is_dir():
            raise must("--config-dir", "a folder", args.config_dir, "correct its name")
        overrides.append(f"hydra.searchpath=['file://{Path(args.config_dir).absolute()}']")
    began, failed, launcher = list[bool](), list[Exception](), os.getpid()
    saved: Saved | None = None

    def job(cfg: DictConfig) -> None:
        began.append(True)
        try:
            try:
                _do(task, cfg, saved)
            except Terminated as error:
                if os.getpid() == launcher:
                    raise
                raise Unfinished(str(error)) from None  # the launcher of a sweep waits for the answer of its job
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error("%s", sentence(error))  # in the job's own log
                raise  # Hydra finishes the other jobs, then raises it again
            failed.append(error)  # kept from Hydra, which would print a line of its own

    with initialize_config_dir(str(CONF), job_name=task, version_base="1.3"):
        name = args.config_name or CONFIGS.get(task, task)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            if task in ("sample", "evaluate") and "run" in keys:
                name, saved = store_run(task, overrides, args.config_dir)
            if args.help:
                hydra.app_help(config_name=name, args_parser=parser, args=args)
            elif args.hydra_help:
                hydra.hydra_help(config_name=name, args_parser=parser, args=args)
            elif args.cfg:
                hydra.show_cfg(name, overrides, cfg_type=args.cfg, package=args.package, resolve=args.resolve)
            elif args.info:
                hydra.show_info(args.info, config_name=name, overrides=overrides)
            elif args.shell_completion:
                hydra.shell_completion(config_name=name, overrides=overrides)
            elif task == "prepare":
                _start(task, compose_config(overrides))
            else:
                start = hydra.multirun if args.multirun else hydra.run
                mode = f"hydra.mode={'MULTIRUN' if args.multirun else 'RUN'}"
                start(config_name=name, task_function=job, overrides=[*overrides, mode])
        except Exception as error:  # odd options make Hydra raise almost any exception
            if type(error).__module__.partition(".")[0] in ("submitit", "ray"):
                said = first_line(error)
                raise ConfigError(
                    f"a job of the sweep ended without an answer ({said}): repeat the command with "
                    "hydra.sweep.dir=FOLDER, the folder of the sweep, which does what is missing"
                ) from error
            if began or of_the_disk(error) is not None or isinstance(error, ConfigError):
                raise
            raise ConfigError(explain(error, overrides, name, args.multirun)) from error
    if failed:
        raise failed[0]


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose and check the config of ``train.py`` with these overrides, without a run; Hydra must be initialized.

    Raises:
        ConfigError, HydraException: if the config cannot be composed.
    """
    cfg = compose("config", ["output_dir=.", *overrides], return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return check(cfg, hydra, "train")


def _do(task: Task, cfg: DictConfig, saved: Saved | None) -> None:
    """Check the config, and only then start the task."""
    if task == "report":
        from optcov.cli.report import report

        runs = OmegaConf.to_container(cfg)["runs"]  # type: ignore[index, call-overload]
        for key in map(str, cfg.keys() - {"runs", "output_dir"}):
            raise must(key, "left out of a report", cfg[key], "a report takes runs and hydra.run.dir")
        sources = [runs] if isinstance(runs, str) else runs
        if not isinstance(sources, list) or not sources or not all(isinstance(each, str) and each for each in sources):
            raise must("runs", "a folder or a list of folders", runs, "give runs=FOLDER or runs=[FOLDER,FOLDER]")
        report(sources, Path(cfg.output_dir))
        return
    config = check(cfg, HydraConfig.get(), task)
    _start(task, config if saved is None else restored(config, saved))


def _start(task: Task, config: Config) -> None:
    if task == "prepare":
        return _prepare(config)
    from optcov.cli.build import assemble  # imports PyTorch, which takes seconds

    assembled = assemble(task, config)
    from optcov.cli import tasks  # imports Lightning, which takes seconds more

    getattr(tasks, task)(*assembled)
    return None


def _prepare(config: Config) -> None:
    """Decode every split of the data into the cache before any run needs them, and print a line for each."""
    from hydra.utils import instantiate

    from optcov.data.prepare import prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with config_errors("data"):
        for line in prepare(instantiate(config.data)):
            print(line)
