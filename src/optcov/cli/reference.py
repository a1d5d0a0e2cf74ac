"""``mean_ckpt=reference/NAME`` on a command line: a network that comes with the package, wherever that is installed."""

from __future__ import annotations

from collections.abc import Sequence

from optcov.errors import must
from optcov.reference import EXPERIMENTS, PREFIX, folder_of

OUTPUT = "${now:%Y-%m-%d_%H-%M-%S}_${optcov_unique:}"


def by_name(task: str, overrides: Sequence[str]) -> list[str]:
    """Replace the name of a network that comes with the package.

    For ``train`` it becomes the path of its weights, with the experiment that trained it, unless another experiment is
    asked for.  For ``sample`` and ``evaluate`` it is the run to work on, whose folder is not written to.

    Raises:
        ConfigError: if there is no such network.
    """
    given = dict(each.split("=", 1) for each in overrides if "=" in each)
    name = given.get("mean_ckpt", "")
    if not name.startswith(PREFIX):
        return list(overrides)
    try:
        folder = folder_of(name)
    except ValueError as error:
        names = ", ".join(f"{PREFIX}{each}" for each in EXPERIMENTS)
        raise must("mean_ckpt", f"a file, or a network that comes with optcov, {names}", name, "give one") from error
    rest = [each for each in overrides if not each.startswith("mean_ckpt=")]
    if task in ("sample", "evaluate") and "run" not in given:
        where = [] if "hydra.run.dir" in given else [f"hydra.run.dir=outputs/{task}/{folder.name}_{OUTPUT}"]
        return [*rest, f"run={folder}", *where]
    experiment = [] if "experiment" in given else [f"experiment={EXPERIMENTS[folder.name]}"]
    return [*rest, *experiment, f"mean_ckpt={folder / 'checkpoints' / 'mean.safetensors'}"]
