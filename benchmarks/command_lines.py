"""Tries random command lines of ``train.py``, in this process, up to the point at which it would begin to fit.

Each must either be accepted or be refused in one line, which must not be the message for unforeseen exceptions.  Hydra
takes half a second to compose a config, so that a line which only sets values changes a config that was composed once;
all other lines go through the whole command.  Run it with ``python -m benchmarks.command_lines [COUNT] [SEED]``; a
thousand take some minutes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from benchmarks.damage import SETTINGS, _at
from optcov.cli import tasks
from optcov.cli.build import assemble
from optcov.cli.check import check
from optcov.cli.main import main, register_resolvers
from optcov.cli.restore import CONF
from optcov.errors import sentence
from optcov.keys import GROUPS, KEYS
from optcov.registry import options

KINDS = [
    "", "null", "true", "0", "-1", "1", "2", "3", "1e9", "1e30", "99999999999999999999", "0.5", "-0.1", "1.0", "nan",
    "inf", "-inf", "[]", "[0]", "[-1]", "[nan]", "[1,2]", "[[1],[2]]", "{}", "{a:1}", "{_target_:os.system}", "x", "é",
    "' '", "''", "'a b'", "a/b", "../x", "/", ".", "~", "${seed}", "${nope}", "${oc.env:NOPE}", "${hydra:job.name}",
    "???", "'${'", "\\${x}", "'\\''", "\"", "a,b", "1,2", "range(1,3)", "choice(1,2)", "os.system", "optcov.model.UNet",
    "optcov.sampler.DDIMSampler", "optcov.files.write_atomically", "lightning.Trainer", "x" * 3000, "[" * 60, "0x10",
    "1_000", "1e", "=", "==", "@", "-", "\n", "\t", "\x1b[31m",
]  # fmt: skip


class _ReachedError(Exception):
    """The command line was accepted."""


@cache
def keys() -> list[str]:
    """List every key of the config, keys inside groups, and some that do not exist."""
    from optcov.registry import node

    found = [key for key in KEYS if key not in ("overrides", "choices", "sweep")]
    for group in ("model", "sampler", "schedule", "trainer", "optimizer", "data", "trajectory", "var", "guidance"):
        for name in options(group)[:3]:
            content = node(group, name)
            found += [f"{group}.{key}" for key in content if isinstance(key, str) and "." not in key]
    found += ["callbacks.ema", "callbacks.ema.decay", "callbacks.x", "logger.csv", "logger.x", "metric.fd_pixel"]
    found += ["nope", "model.nope", "hydra.run.dir", "hydra.nope", "hydra/launcher", "a b", "", ".", "model.", "1"]
    trainer = ("max_epochs", "fast_dev_run", "limit_train_batches", "callbacks", "plugins", "profiler", "devices")
    return list(dict.fromkeys([*found, *(f"trainer.{name}" for name in trainer)]))


def line(chance: random.Random) -> list[str]:
    """Draw a random command line of one or two overrides."""
    known = keys()
    found = []
    for _ in range(chance.choice((1, 1, 2))):
        prefix = chance.choice(("", "", "", "+", "++", "~"))
        key = chance.choice(known)
        value = chance.choice(KINDS)
        group = key in KEYS and chance.random() < 0.2 and options(key)
        found.append(f"{prefix}{key}={chance.choice(group) if group else value}")
    return found


def verdict(arguments: list[str]) -> str:
    """Say how a command line ends: ``accepted``, ``refused``, or what is wrong with the way it ended."""
    try:
        changed = _changed(arguments)
        with tempfile.TemporaryDirectory() as name, _at(Path(name), "train", []):
            return _whole(arguments) if changed is None else _checked(arguments, changed)
    except BaseException as error:  # any exception is a finding
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"


@cache
def _composed() -> tuple[DictConfig, Any]:
    """The config of the tiny network, and Hydra's own node."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["output_dir=.", *SETTINGS], return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, hydra


def _changed(arguments: list[str]) -> DictConfig | None:
    """The config that a command line makes of the composed one; None if that takes Hydra."""
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
        cfg = _composed()[0].copy()
        for each in overrides:
            if not _is_plain(each, cfg):
                return None
            OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True, force_add=True)
    except (OverrideParseException, OmegaConfBaseException, ValueError):
        return None
    return cfg


def _is_plain(override: Override, cfg: DictConfig) -> bool:
    """Whether an override only sets a value."""
    key = override.key_or_group
    if override.is_delete() or override.is_sweep_override() or "/" in key or "@" in key or key in GROUPS:
        return False
    if key.startswith("hydra") or not all(part.isidentifier() for part in key.split(".")):
        return False
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    there = isinstance(node, DictConfig) and name in node
    return override.is_force_add() or there != override.is_add()


def _checked(arguments: list[str], cfg: DictConfig) -> str:
    """Check a config and build its parts, as the command does after Hydra."""
    hydra = _composed()[1]
    overrides = SimpleNamespace(task=[*SETTINGS, *arguments])
    node = SimpleNamespace(overrides=overrides, runtime=hydra.runtime, mode=None, sweep=hydra.sweep)
    try:
        with patch("optcov.cli.tasks.open_run_folder", _reached):
            tasks.train(*assemble("train", check(cfg, node, "train")))
    except _ReachedError:
        return "accepted"
    except Exception as error:
        return _judged(f"error: {sentence(error)}")
    return "ended without a word"


def _reached(*args: Any, **kwargs: Any) -> None:
    raise _ReachedError


def _whole(arguments: list[str]) -> str:
    """Give a whole command, up to the point at which it would claim its folder."""
    sys.argv[1:] = [*SETTINGS, *arguments]
    try:
        with patch("optcov.cli.tasks.open_run_folder", _reached):
            main("train")
    except SystemExit as error:
        return "accepted" if "_ReachedError" in str(error.code) else _judged(str(error.code))
    return "ended without a word"


def _judged(said: str) -> str:
    """Whether a refusal is one line that names a remedy."""
    if not said.startswith("error: ") or "\n" in said or not said.isprintable():
        return f"not one line: {said[:200]!r}"
    return f"last resort: {said[:200]}" if "HYDRA_FULL_ERROR" in said else "refused"


def run(count: int, seed: int, first: int = 0) -> None:
    """Print each command line that ends wrongly, and now and then the number of each kind of end.

    Args:
        count: number of command lines.
        seed: seed of their random choice.
        first: the line to begin with.
    """
    chance, found = random.Random(seed), Counter[str]()
    for number in range(count):
        arguments = line(chance)
        if number < first:
            continue
        said = verdict(arguments)
        found[said.partition(":")[0]] += 1
        if said not in ("accepted", "refused"):
            print(f"{number}: {arguments!r:.200}: {said}", flush=True)
        if (number + 1) % 50 == 0 or number + 1 == count:
            print(f"{number + 1}: {', '.join(f'{times} {name}' for name, times in found.most_common())}", flush=True)


if __name__ == "__main__":
    run(*(int(each) for each in (*sys.argv[1:], *("1000", "0", "0")[len(sys.argv) - 1 :])))
