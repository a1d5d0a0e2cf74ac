"""The arithmetic of the benchmarks: ratios in pairs, goals, and the table; nothing is timed."""

import pytest

from benchmarks.__main__ import ROWS, markdown
from benchmarks.timing import Row, Settings, Times, alternate


def test_ratios_are_of_turns_in_the_same_round():
    times = Times({"ours": [1.0, 4.0, 1.0], "peer": [2.0, 4.0, 3.0]}, {"ours": 1.0, "peer": None})
    row = times.row("ours", "peer", "sampling", "fp32", 10, "images/s", ">= 2")
    assert (row.ours, row.peer) == (10.0, pytest.approx(10 / 3))
    assert (row.ratio, row.low, row.high) == (2.0, 1.0, 3.0)  # the median of 2, 1, 3 and not the ratio of medians
    assert row.met is True


@pytest.mark.parametrize(
    ("goal", "ratio", "met"), [(">= 2", 1.99, False), ("<= 0.5", 0.4, True), ("<= 0.5", 0.6, False), ("", 3.0, None)]
)
def test_goals(goal: str, ratio: float, met: bool | None):
    assert Row("", "", ratio=ratio, goal=goal).met is met


@pytest.mark.parametrize(("seconds", "rounds"), [(60.0, 5), (0.0, 3)])
def test_contenders_take_turns_and_three_rounds_are_always_made(seconds: float, rounds: int):
    turns: list[str] = []
    contenders = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    times = alternate(contenders, Settings(rounds=5, seconds=seconds))
    assert "".join(turns) == "ab" + "abbaabbaab"[: 2 * rounds]  # warm-up first
    assert {name: len(each) for name, each in times.seconds.items()} == {"a": rounds, "b": rounds}


def test_the_table_has_a_cell_for_each_column():
    rows = [Row("sampling", "fp32", 1.0, 2.0, "images/s", 0.5, 0.4, 0.6, ">= 1.2", 3.0, None, "note"), Row("bare", "")]
    *_, head, line, first, second = markdown({"cpu": "any"}, rows).splitlines()
    assert head.count("|") == line.count("|") == first.count("|") == second.count("|")
    assert "missed" in first
    assert "missed" not in second
    assert {"sampling", "training", "strategies", "startup", "gpu"} <= set(ROWS)
