"""The time of day decides nothing: it may be set back while a command runs, and two commands may begin at once."""

import itertools
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CLI, results
from hydra import compose, initialize_config_dir

from optcov.cli.main import CONF, register_resolvers
from optcov.training import SampleStore


def test_a_clock_that_is_set_back_changes_no_durations(
    run: CLI, trained: Path, count_calls: Any, monkeypatch: pytest.MonkeyPatch
):
    """By an hour at every look; seconds are those of a clock that nobody sets."""
    written = count_calls(SampleStore, "write")
    arguments = [f"run={trained}", "num_samples=4", "sample_batch_size=2"]
    monkeypatch.setattr(time, "time", itertools.count(2e9, -3600).__next__)
    folder = run(*arguments, task="evaluate", tiny=False)
    (began, ended), (began_next, ended_next) = [call[3:5] for call in written]
    assert began < ended <= began_next < ended_next
    seconds = results(folder)["wall_time_s"]["sampling"]
    np.testing.assert_allclose(seconds, ended - began + ended_next - began_next, rtol=1e-3)


def test_commands_of_the_same_second_have_folders_of_their_own():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first, second = (compose("config", return_hydra_config=True).hydra for _ in range(2))
    for ours, theirs in ((first.run, second.run), (first.sweep, second.sweep)):
        assert ours.dir != theirs.dir
        assert re.fullmatch(r".+_[0-9a-f]{8}", ours.dir)
