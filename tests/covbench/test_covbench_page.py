"""The page of covbench has the numbers of its results, and says what they show."""

import math
from typing import Any

import pytest

from benchmarks import covbench_page
from benchmarks.reference_page import filled
from optcov.covbench import ESTIMATORS, TASKS
from optcov.covbench.write import YARDSTICKS, by_task, mean, path, read

Cells = dict[str, dict[str, dict[str, Any]]]
EXACT = ("gaussian_field/v1", "digits_mixture/v1", "finite_digits/v1", "cifar_patches/v1")


@pytest.fixture(scope="module")
def cells() -> Cells:
    tasks = by_task(read(covbench_page.RESULTS))
    return {task: {each["estimator"]: each for each in own} for task, own in tasks.items()}


def best(own: dict[str, dict[str, Any]], score: str, free: bool = True) -> list[str]:
    """The estimators that see no truth, the best first; ``free``, those without products."""
    names = [name for name in own if name not in YARDSTICKS and not (free and own[name]["times"][0]["ne"])]
    return sorted(names, key=lambda name: mean(own[name], score))


def test_the_page_has_the_numbers_of_the_results(cells: Cells):
    page, listed = covbench_page.PAGE.read_text(), [each for own in cells.values() for each in own.values()]
    made = covbench_page.tables(listed)
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert filled(page, made) == page
    changed = [each | {"slope": -3.0} for each in listed]
    assert filled(page, covbench_page.tables(changed)) != page
    assert set(cells) == set(TASKS)
    assert all(set(own) == set(ESTIMATORS) for own in cells.values())


def test_paths_have_the_slopes_of_theory(cells: Cells):
    for task in EXACT:
        assert cells[task]["exact_diagonal"]["slope"] == pytest.approx(-1, abs=0.15)
        for name, each in cells[task].items():
            if name != "exact" and "slope" in each and math.isfinite(mean(each, "excess")):
                assert each["slope"] > -1.1, name
        floor = cells[task]["exact"]["floor"]
        if task != "gaussian_field/v1":
            slope, error = covbench_page.slope_between(floor, 128, 512)
            assert slope < -1.8
            assert abs(slope + 2) < 2 * error


def test_two_points_have_the_slopes_that_the_page_says():
    """Those of the tasks, too: -2 is reached only where a step changes the SNR little."""
    found = {str(each): (covbench_page.two_points(each), 0.0) for each in (32, 128, 512)}
    slopes = [round(covbench_page.slope_between(found, *ends)[0], 2) for ends in ((32, 128), (128, 512))]
    assert slopes == [-1.65, -1.84]
    # by sums over a grid of x_t and x_s, with densities and kernels written out
    assert covbench_page.two_points(8) == pytest.approx(0.3047, abs=2e-4)


def test_what_the_page_says_is_so(cells: Cells):
    assert best(cells["gaussian_field/v1"], "excess")[0] == "azula_kronecker"
    assert set(best(cells["digits_mixture/v1"], "excess")[:2]) == {"data_cov", "azula_full"}
    assert best(cells["finite_digits/v1"], "excess")[0] == "low_rank"
    assert set(best(cells["cifar_patches/v1"], "excess")[:3]) == {"dct_head", "dct", "kdct"}
    for task in EXACT:
        own = cells[task]
        exact, nll, sn = (own[name] for name in ("exact_diagonal", "nll", "sn_dpm"))
        assert mean(nll, "excess") < mean(exact, "excess") + 0.04
        assert mean(own["jacobian"], "frobenius") < 1e-9
        assert 0.45 < mean(sn, "diagonal") < 2.6
        assert 71 <= mean(sn, "c90") < 83.5
        assert path(sn)[128] > 200 * path(exact)[128]
        assert sn["slope"] > 0
        for name in ("npr_dpm", "gms", "ocm", "sn_dpm", "analytic_diag"):
            assert mean(own[name], "excess") == math.inf
        for name in ("nll", "dct_head", "kdct", "low_rank", "analytic_imperfect"):
            assert mean(own[name], "excess") < math.inf
    planted = [cells[f"{task}/planted"] for task in EXACT]
    low_rank, jacobian, analytic, imperfect = (
        [own[name] for own in planted] for name in ("low_rank", "jacobian", "analytic", "analytic_imperfect")
    )
    assert sum(best(own, "diagonal", free=False)[0] == "nll" for own in planted) == 3
    assert [best(own, "excess", free=False)[0] for own in planted[2:]] == ["low_rank", "low_rank"]
    assert max(mean(each, "c90") for each in analytic) < 86 < min(mean(each, "c90") for each in (*imperfect, *low_rank))
    assert min(mean(each, "frobenius") for each in jacobian) > 1
