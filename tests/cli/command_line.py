"""The command line inside the test's own process: a tiny network, a folder of its own, and what it said and left."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor

from optcov.cli.main import CONF, compose_config, main, register_resolvers
from optcov.foreign import read_json
from optcov.keys import Config

ROOT = Path(__file__).parents[2]
UNET = [
    "model=unet",
    "model.channels=8",
    "model.channel_mult=[1,1]",
    "model.attention_resolutions=[]",
    "model.middle_attention=false",
]
TINY = [
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
    "variance_steps=null",
    "variance_lr=null",
    "cooldown=0",
    "optimizer=adamw",
    "schedule.num_steps=50",
    "sampler.num_steps=3",
    "num_samples=8",
    "sample_batch_size=8",
    "logger=csv",
]


def _besides(arguments: Sequence[str]) -> list[str]:
    """The settings of a tiny network that these arguments leave open."""
    network = [] if {"model=mlp", "model=oracle", "experiment=oracle"} & set(arguments) else UNET
    keys = {argument.partition("=")[0] for argument in arguments}
    return [line for line in [*TINY, *network] if line.partition("=")[0] not in keys]


@dataclass(frozen=True)
class CLI:
    """Runs a task's entry point in this process, in a folder."""

    folder: Path

    def __call__(self, *arguments: str, task: str = "train", tiny: bool = True) -> Path:
        """Run to the end.

        Args:
            arguments: of the command line; without a ``hydra.run.dir`` the run is in ``run`` of the folder.
            task: ``train``, ``sample`` or ``evaluate``.
            tiny: put the settings of a tiny network in front.
        Returns:
            The run's folder.
        Raises:
            SystemExit: whose code is the sentence shown to the user.
        """
        given = _besides(arguments) if tiny else []
        run = next((a.partition("=")[2] for a in arguments if a.startswith("hydra.run.dir=")), None)
        if run is None:
            run = "run" if task == "train" else task
            given.append(f"hydra.run.dir={run}")
        self.raw(*given, *arguments, task=task)
        return self.folder / run

    def refused(self, *arguments: str, task: str = "train", tiny: bool = True) -> str:
        """Run, expect it to be refused, and return the sentence."""
        with pytest.raises(SystemExit) as exit_:
            self(*arguments, task=task, tiny=tiny)
        assert isinstance(exit_.value.code, str), "the exit code is not 1"
        assert exit_.value.code.startswith("error: ")
        return exit_.value.code.removeprefix("error: ")

    def raw(self, *arguments: str, task: Any = "train") -> None:
        """Run with these arguments and no others."""
        before = Path.cwd(), dict(os.environ), sys.argv
        try:
            os.environ.pop("HYDRA_FULL_ERROR", None)
            sys.argv = [f"{task}.py", *arguments]
            os.chdir(self.folder)
            main(task)
        finally:
            os.chdir(before[0])
            os.environ.clear()
            os.environ.update(before[1])
            sys.argv = before[2]


def composed(*arguments: str, tiny: bool = True) -> Config:
    """The config of train.py with these arguments, without a run; of a tiny network, where it is not said otherwise."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_config([*(_besides(arguments) if tiny else []), *arguments])


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, Hydra's logs and lock files aside; of what a folder holds, its names."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.suffix not in (".log", ".lock") and path.name != ".lock"
    }


def files(folder: Path) -> set[str]:
    """The files below a folder, Hydra's logs and lock files aside."""
    return {name for name, content in contents(folder).items() if content != "folder"}


def results(folder: Path) -> dict[str, Any]:
    """A run's ``results.json``."""
    return dict(read_json(folder / "results.json"))


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in memory: what safetensors returns lies in the file."""
    return {name: value.clone() for name, value in load_file(path).items()}
