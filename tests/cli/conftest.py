"""Fixtures of the command line's tests."""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from command_line import CLI, contents
from hydra.core.singleton import Singleton
from lightning.fabric.utilities import registry
from omegaconf import DictConfig
from PIL import Image

from optcov.cli import evaluate, restore


@pytest.fixture(autouse=True, scope="session")
def drawn_curves() -> Iterator[Callable[..., None]]:
    """Each run measures its variance at four times on eight images and leaves the plot blank, or else these would take
    half of a tiny run's time; this is what really draws it."""
    drawing = evaluate.plot_variance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "plot_variance", lambda curves, path: Image.new("L", (1, 1)).save(path))
        patch.setattr(evaluate, "num_profile_images", lambda dimensions: 8)
        patch.setattr(evaluate, "variance_profile", partial(evaluate.variance_profile, num_times=4))
        yield drawing


@pytest.fixture(autouse=True, scope="session")
def _repeat_no_search() -> Iterator[None]:
    """What is the same in every test: the options of a run as defined here, and Lightning's search for plugins."""
    compose, kept = restore.compose, dict[tuple[str, ...], bytes]()

    def compose_once(name: str, overrides: Sequence[str]) -> DictConfig:
        key = (name, *overrides)
        if any("searchpath" in each for each in overrides):  # a test's own options
            return compose(name, list(overrides))
        if key not in kept:
            kept[key] = pickle.dumps(compose(name, list(overrides)))
        composed: DictConfig = pickle.loads(kept[key])
        return composed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "compose", compose_once)
        patch.setattr("lightning.fabric.utilities.registry.entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True)
def _leave_no_job_behind() -> Iterator[None]:
    """Hydra remembers the config of the last job of a process."""
    before = Singleton.get_state()
    yield
    Singleton.set_state(before)


@pytest.fixture(autouse=True)
def _leave_no_service_behind() -> Iterator[None]:
    """W&B's process serves all runs of a process, within the limits (size of files, home) of the test that began it."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def run(tmp_path: Path) -> CLI:
    """The command line, in a folder of the test's own."""
    return CLI(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of var=sn_dpm, to be read only; its cache is ``../outputs/cache``."""
    folder = tmp_path_factory.mktemp("trained")
    return CLI(folder)("var=sn_dpm")


@pytest.fixture
def untouched(trained: Path) -> Iterator[Path]:
    """The same, checked afterwards to be what it was."""
    before = contents(trained.parent)
    yield trained
    assert contents(trained.parent) == before


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[tuple[Any, ...]]]:
    """Wraps a function so that the arguments of its calls are kept."""

    def wrap(owner: Any, name: str) -> list[tuple[Any, ...]]:
        original, calls = getattr(owner, name), []

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return calls

    return wrap
