"""The program that measures what few times cost takes a run's folder, as the page on few times says."""

from pathlib import Path

import pytest

from benchmarks import few_times


def test_the_table_of_a_run(untouched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(few_times, "KINDS", {"analytic": {}})
    monkeypatch.setattr(few_times, "COUNTS", (10, 50))
    few_times.main(str(untouched), num_images=4)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| analytic")]
    assert [row[1] for row in rows] == ["all", "10", "50"]
    full, _, every = (float(row[-1].strip(" |")) for row in rows)
    assert every == full  # all 50 times of the schedule are measured
    assert rows[2][2:6] == ["100.0%", "0.00%", "0.0%", "0.0%"]
