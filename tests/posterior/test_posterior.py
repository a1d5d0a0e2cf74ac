"""The table of posterior samplers: its tasks' posteriors, its scores, and what is drawn for it."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from benchmarks import posterior_page
from optcov import posterior
from optcov.covbench.truths import Blurred
from optcov.errors import ConfigError
from optcov.oracle import GaussianMixture
from optcov.posterior.__main__ import main
from optcov.posterior.scores import against
from optcov.posterior.tasks import NOISE, TASKS, Task, WeightedPoints, posterior_of
from optcov.posterior.write import read

FEW = {"budgets": [], "steps": [3], "measurements": 2, "samples": 39, "progress": False}


def test_points_given_a_measurement_are_a_mixture_given_it():
    generator = torch.Generator().manual_seed(0)
    points, matrix = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((5, 3), (2, 3)))
    y = torch.tensor([0.3, -0.2], dtype=torch.float64)
    ours = posterior_of(Blurred(points, 0.2), matrix, y)
    wanted = posterior_of(GaussianMixture(points, [0.2] * 5), matrix, y)
    assert isinstance(ours, WeightedPoints)
    assert_close(ours.mean(), wanted.mean())
    assert_close(ours.root @ ours.root.T, wanted.covariances[0])
    assert_close(ours.sample(20000, generator).mean(0), wanted.mean(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", TASKS)
def test_truth_and_exact_samples_agree(name: str):
    """The truth of each measurement is a draw from its posterior: intervals hold it as often as they say."""
    task = Task.made(name, 20, 39, 3)
    scores = task.scores(task.again(39))
    assert scores["c90"][0] == pytest.approx(90, abs=max(4 * scores["c90"][1], 3))
    assert abs(scores["energy"][0]) < 5 * scores["energy"][1]
    assert_close(task.operator(task.images), task.y, rtol=0, atol=6 * NOISE)


def test_all_methods_draw_and_calls_are_counted():
    found = {each["method"]: each for each in posterior.run(["digits_inpaint"], **FEW)}
    assert set(found) == {"exact", *posterior.METHODS}
    assert all(math.isfinite(each["energy"][0]) for each in found.values())
    assert found["exact"]["energy"][0] < found["full"]["energy"][0] < found["diagonal"]["energy"][0]
    assert [found[name]["ne"] for name in ("full", "pi_gdm", "mmps_3", "repaint")] == [3, 9, 27, 6]
    assert found["diffpir"]["choice"] in ("1 0.3", "1 1", "8 0.3", "8 1")


def test_gaussian_steps_are_exact_on_a_gaussian_field():
    found = {each["method"]: each for each in posterior.run(["field_pixels"], ["full", "exact_update", "ddnm"], **FEW)}
    assert abs(found["full"]["energy"][0]) < 0.05 < found["ddnm"]["energy"][0]
    assert abs(found["exact_update"]["energy"][0]) < 0.05


def test_the_command_continues_and_writes_tables(tmp_path, capsys, monkeypatch):
    command = ["--tasks", "ring", "--methods", "full", "pi_gdm", "--budgets", "9", "--steps", "3"]
    command += ["--measurements", "2", "--samples", "39", "--workers", "1", "--output", str(tmp_path)]
    main(command)
    shown = capsys.readouterr().out
    cells = json.loads((tmp_path / "posterior.json").read_text())["cells"]
    assert [(each["method"], each["steps"], each["ne"]) for each in cells] == [
        ("exact", 0, 0), ("full", 3, 3), ("full", 9, 9), ("pi_gdm", 3, 9),
    ]  # fmt: skip
    assert "| **full C** | " in shown
    assert len((tmp_path / "posterior.csv").read_text().splitlines()) == 5
    monkeypatch.setattr("optcov.posterior.cells._scores", None)  # nothing is measured again
    main(command)


def test_the_page_shows_the_results():
    page = posterior_page.PAGE.read_text()
    for name, text in posterior_page.tables(read(posterior_page.RESULTS)).items():
        assert f"<!-- {name} -->\n{text}\n<!-- end -->" in page, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tasks": ["digit_inpaint"]},
            "task must be one of the table .got digit_inpaint.: did you mean",
        ),
        ({"methods": ["pigdm"]}, "method must be one of the table .got pigdm.: did you mean pi_gdm"),
        ({"samples": 20}, "samples must be at least 39 .got 20."),
        ({"measurements": 1}, "measurements must be at least 2"),
        ({"budgets": [1]}, "budgets must be at least 2 .got 1."),
    ],
)
def test_refusals(change, message: str):
    with pytest.raises(ConfigError, match=message):
        posterior.run(**{"tasks": ["ring"]} | change)


def test_intervals_and_crps_are_those_of_calibrated_samples():
    generator = torch.Generator().manual_seed(0)
    truth, samples = torch.randn(1, 4000, generator=generator), torch.randn(1, 19, 4000, generator=generator)
    found = against(truth, samples)
    assert float(found["c90"]) == pytest.approx(90, abs=1.5)  # three standard errors
    assert float(found["c50"]) == pytest.approx(50, abs=2.5)
    assert float(found["crps"]) == pytest.approx(1 / math.sqrt(math.pi), abs=0.03)  # of N(0, 1) for itself
