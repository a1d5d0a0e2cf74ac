"""covbench knows what is exact, sees what is wrong, continues where it was, and refuses what is not there."""

import csv
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optcov
from optcov import covbench
from optcov.covbench import cells, scores, tasks, truths
from optcov.covbench.__main__ import main
from optcov.covbench.estimators import Exact, PiGDM, RowSums, estimator_of, made
from optcov.covbench.tasks import Bench, Task, task_of
from optcov.covbench.truths import Blurred, Unavailable, gaussian_field
from optcov.denoiser import Denoiser
from optcov.errors import ConfigError
from optcov.oracle import GaussianMixture
from optcov.variance.base import VarianceStrategy

TINY = {"points": 4, "path_points": 0, "progress": False}


@pytest.fixture(autouse=True)
def few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TIMES", (0.2, 0.6))


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tasks, scores):
        monkeypatch.setattr(module, "STEPS", (4, 8))
    monkeypatch.setattr(scores, "FLOOR_STEPS", (4, 8, 16))
    monkeypatch.setattr(scores, "SLOPE_FROM", 4)


@pytest.mark.parametrize("task", ["gaussian_field/v1", "finite_digits/v1/planted"])
def test_the_truth_has_no_error_and_others_have_some(task: str):
    bench = Bench(task_of(task), 6, 2)
    found = {
        name: scores.at_times(bench, made(name, estimator, bench.denoiser, bench.images))
        for name, estimator in {
            "exact": estimator_of("exact"),
            "exact_diagonal": estimator_of("exact_diagonal"),
            "analytic_imperfect": covbench.fitted("analytic_imperfect", num_times=4, num_images=8),
        }.items()
    }
    for name, rows in found.items():
        assert [each["t"] for each in rows] == [0.2, 0.6]
        for each in rows:
            assert sum(each["pit"]) == pytest.approx(1)
            wrong = [name != "exact" and score != "diagonal" for score in ("diagonal", "frobenius", "excess")]
            errors = [each[score][0] for score in ("diagonal", "frobenius", "excess")]
            if name != "analytic_imperfect":
                assert [error > 1e-3 for error in errors] == wrong
                assert max(error for error, is_wrong in zip(errors, wrong, strict=True) if not is_wrong) < 1e-9
            else:
                assert min(errors) > 1e-3


def test_a_planted_error_shows_in_coverage():
    bench = Bench(Task("gaussian_field", "v1", gaussian_field, 1.0), 24, 2)
    found = {}
    for name in ("exact", "data_cov"):
        strategy = made(name, estimator_of(name), bench.denoiser, bench.images)
        found[name] = {
            score: sum(each[score][0] for each in scores.at_times(bench, strategy)) / 2 for score in ("c90", "residual")
        }
    assert 87 < found["exact"]["c90"] < 93
    assert found["data_cov"]["c90"] < 83
    assert found["data_cov"]["residual"] > 1.25
    assert found["exact"]["residual"] == pytest.approx(1, abs=0.1)


def test_paths_know_an_exact_chain(monkeypatch: pytest.MonkeyPatch):
    """A Gaussian's reverse steps are Gaussian: the full C leaves nothing, its diagonal something of slope -1."""
    few_steps(monkeypatch)
    bench = Bench(task_of("gaussian_field/v1"), 2, 2)
    assert max(value for value, _ in scores.floor(bench, 3).values()) < 1e-9
    full, diagonal = (scores.path_excess(bench, Exact(bench.denoiser, each)) for each in (False, True))
    assert full == {steps: (pytest.approx(0, abs=1e-8), pytest.approx(0, abs=1e-8)) for steps in (4, 8)}
    assert -2 < scores.slope({steps: value for steps, (value, _) in diagonal.items()}) < -0.5
    planted = Bench(task_of("gaussian_field/v1/planted"), 2, 2)
    assert max(value for value, _ in scores.floor(planted, 3).values()) < 1e-9  # the mean's error is no part of it
    assert min(value for value, _ in scores.path_excess(planted, Exact(planted.denoiser)).values()) > 0.1
    assert math.isnan(scores.slope({32: 0.0, 64: 0.0}))
    assert scores.slope({steps: 3 / steps**2 for steps in (32, 64, 128)}) == pytest.approx(-2)


def test_a_mixture_has_a_floor_that_falls(monkeypatch: pytest.MonkeyPatch):
    """That its estimate is unbiased: it agrees with the plain mean of log(q / g), within the error of that."""
    few_steps(monkeypatch)
    bench = Bench(task_of("digits_mixture/v1"), 2, 2)
    floor = scores.floor(bench, 64)
    plain = scores._log_ratios(bench, 64, 1)[:, 0]
    for (steps, (value, error)), terms in zip(floor.items(), plain, strict=True):
        assert abs(value - float(terms.mean())) < 3 * float(terms.std()) / 8
        assert error <= float(terms.std()) / 8 * 1.001, steps
    assert floor[4][0] > 1.3 * floor[8][0] > 1.3 * 1.3 * floor[16][0] > 0.1


def test_a_divergence_is_that_of_two_gaussians():
    root = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    exact, found = (each @ each.mT + torch.eye(5) for each in root)
    off = root[0, :, 0]
    inverse = torch.linalg.inv(found)
    trace = (inverse @ (exact + off[:, :, None] * off[:, None])).diagonal(dim1=1, dim2=2).sum(1)
    expected = (trace - 5 + torch.logdet(found) - torch.logdet(exact)) / 2
    torch.testing.assert_close(scores.gaussian_divergence(exact, found, off), expected)


def test_blurred_points_are_the_mixture_that_they_are():
    points = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).double()
    alpha, sigma = torch.tensor(0.7).double(), torch.tensor(0.6).double()
    x_t = alpha * points[:3] + 0.1
    blurred, mixture = Blurred(points, 0.01), GaussianMixture(points, [0.01] * 5)
    for found, exact in zip(blurred.posterior(x_t, alpha, sigma), mixture.posterior(x_t, alpha, sigma), strict=True):
        torch.testing.assert_close(found, exact)
    torch.testing.assert_close(blurred.log_density(x_t, alpha, sigma), mixture.log_density(x_t, alpha, sigma))
    levels = alpha.expand(3), sigma.expand(3)
    torch.testing.assert_close(mixture.posterior(x_t, alpha, sigma), mixture.posterior(x_t, *levels))


def test_published_covariances_are_theirs():
    """Pi-GDM's is that of white data of variance 1, TMPD's the row sums of C."""
    bench = Bench(task_of("gaussian_field/v1"), 2, 2)
    node = bench.nodes[0.2]
    prediction = bench.predicted(node)
    white, sums = (each(bench.denoiser).covariance(bench.denoiser, prediction) for each in (PiGDM, RowSums))
    alpha, sigma = node.level.alpha, node.level.sigma
    torch.testing.assert_close(
        white.dense(), (torch.eye(64).double() * sigma**2 / (alpha**2 + sigma**2)).expand(2, -1, -1)
    )
    torch.testing.assert_close(sums.diagonal().flatten(1), node.covariance.sum(2))


def counted(made_for: list[VarianceStrategy]) -> covbench.Estimator:
    def beta(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
        assert images.shape == (tasks.IMAGES, 1, 8, 8)
        made_for.append(optcov.fit("beta", denoiser))
        return made_for[-1]

    return beta


def test_a_run_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "write_report", lambda folder, found: None)
    strategies: list[VarianceStrategy] = []
    entries = {"mine": counted(strategies)}
    tiny = TINY | {"output": tmp_path}
    first = covbench.run(["gaussian_field/v1"], entries, **tiny)
    more = covbench.run(["gaussian_field/v1", "gaussian_field/v1/planted"], entries, **tiny)
    assert len(strategies) == 2
    assert more[: len(first)] == first
    covbench.run(["gaussian_field/v1"], entries, **tiny | {"points": 3})  # of other points
    covbench.run(["gaussian_field/v1"], entries, fresh=True, **tiny)
    assert len(strategies) == 4
    (tmp_path / "covbench.json").write_text('{"cells": [{"task": 1}]}')
    with pytest.raises(ConfigError, match=r"^output must be a folder whose covbench.json is whole .*: delete it"):
        covbench.run(["gaussian_field/v1"], entries, **tiny)


def test_files_are_tidy_and_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few_steps(monkeypatch)
    monkeypatch.setattr(scores, "FLOOR_PATHS", 3)
    monkeypatch.setattr(scores.floor, "__defaults__", (3,))
    rows = covbench.run(["gaussian_field/v1"], ["exact", "beta"], **TINY | {"path_points": 2, "output": tmp_path})
    with (tmp_path / "covbench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        "task", "version", "planted", "estimator", "score", "t", "steps", "value", "standard_error",
        "points", "path_points", "seed", "optcov", "commit", "torch", "machine",
    ]  # fmt: skip
    assert len(lines) == len(rows)
    assert [(line["task"], line["version"], line["torch"]) for line in lines[:1]] == [
        ("gaussian_field", "v1", torch.__version__)
    ]
    assert {line["t"] for line in lines} == {"0.2", "0.6", ""}
    assert {line["steps"] for line in lines if line["score"] == "path_excess"} == {"4", "8"}
    assert {"pit_0", "pit_9", "c90", "slope", "fit_seconds", "ne", "seconds"} < {line["score"] for line in lines}
    assert len({tuple(line[key] for key in ("estimator", "score", "t", "steps")) for line in lines}) == len(lines)
    html = (tmp_path / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == html.count("src=") == 1
    assert "http://" not in html.replace("http-equiv", "")
    assert "| `beta` | **" in (tmp_path / "covbench.md").read_text()


def test_infinite_scores_survive_json(tmp_path: Path):
    """`beta_tilde` has no variance: its excess is infinite, and JSON has no infinity."""
    rows = covbench.run(
        ["gaussian_field/v1"], {"none": lambda denoiser, _: optcov.fit("beta_tilde", denoiser)},
        **TINY | {"output": tmp_path},
    )  # fmt: skip
    excess = [row["value"] for row in rows if row["score"] == "excess"]
    assert excess == [row["value"] for row in rows if row["score"] == "residual"] == [math.inf, math.inf]
    assert {row["value"] for row in rows if row["score"] == "c95"} == {0.0}

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "covbench.json").read_text(), parse_constant=refused)
    again = covbench.run(["gaussian_field/v1"], {"none": estimator_of("exact")}, **TINY | {"output": tmp_path})
    assert [row["value"] for row in again if row["score"] == "excess"] == excess


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tasks": ["digit_mixture/v1"]},
            r"^task must be a task of covbench \(got digit_mixture/v1\): did you mean digits_",
        ),
        ({"estimators": ["lowrank"]}, r"^estimator must be .*\(got lowrank\): did you mean low_rank"),
        ({"estimators": ["no_such:thing"]}, r"^estimator must be .*\(got no_such:thing\): No module named"),
        ({"estimators": ["optcov.verbs:fits"]}, r"^estimator must be .*\(got optcov.verbs:fits\): did you mean fit"),
        (
            {"estimators": {"mine": lambda denoiser, images: 1}},
            r"^estimator mine must be .*CovarianceModel.*\(got int\)",
        ),
        ({"points": 1}, r"^points must be at least 2 \(got 1\): a standard error needs two"),
        ({"path_points": 1}, r"^path_points must be at least 2 \(got 1\)"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(given: dict, message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        covbench.run(**TINY | {"tasks": ["gaussian_field/v1"], "estimators": ["exact"]} | given)
    assert "\n" not in str(refused.value)


def test_what_needs_data_or_a_package_is_left_out_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OPTCOV_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "azula.linalg.covariance", None)
    with pytest.raises(Unavailable, match=r"^OPTCOV_DATA must be a folder with CIFAR-10 \(got .*leave the task"):
        covbench.run(["cifar_patches/v1"], ["exact"], **TINY)
    with pytest.raises(Unavailable, match=r"^azula must be installed .*: pip install --no-deps azula einops, or"):
        covbench.run(["gaussian_field/v1"], ["azula_full"], **TINY)
    monkeypatch.setattr(cells, "TASKS", ["gaussian_field/v1", "cifar_patches/v1"])
    monkeypatch.setattr(cells, "ESTIMATORS", ["exact", "azula_full"])
    rows = covbench.run(**TINY)
    assert {(row["task"], row["estimator"]) for row in rows} == {("gaussian_field", "exact")}
    assert [record.message.partition(" is left out: ")[0] for record in caplog.records] == [
        "azula_full of gaussian_field/v1", "exact of cifar_patches/v1", "azula_full of cifar_patches/v1",
    ]  # fmt: skip


def test_patches_of_another_cifar_are_refused(monkeypatch: pytest.MonkeyPatch):
    other = types.SimpleNamespace(load=lambda split: torch.zeros(truths.PATCHES, 3, 32, 32, dtype=torch.uint8))
    monkeypatch.setattr(truths, "CIFAR10Data", lambda *given, **settings: other)
    with pytest.raises(ConfigError, match="in its published order"):
        truths.cifar_patches()


def test_azulas_gaussian_posterior_is_that_of_the_data():
    pytest.importorskip("azula")
    bench = Bench(task_of("gaussian_field/v1"), 2, 2)
    prediction = bench.predicted(bench.nodes[0.2])
    theirs, ours = (
        made(name, estimator_of(name), bench.denoiser, bench.images).covariance(bench.denoiser, prediction).dense()
        for name in ("azula_full", "data_cov")
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-7)


def test_the_command_line_prints_a_table_and_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = types.ModuleType("my_estimators")
    module.__dict__["mine"] = counted([])
    sys.modules["my_estimators"] = module
    try:
        words = ["--tasks", "gaussian_field/v1", "--points", "2", "--path-points", "0", "--output", str(tmp_path)]
        main([*words, "--estimators", "exact", "--estimator", "my_estimators:mine"])
        assert "| `my_estimators:mine` |" in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"^error: estimator must be .*did you mean"):
            main([*words, "--estimators", "exactly"])
    finally:
        del sys.modules["my_estimators"]
