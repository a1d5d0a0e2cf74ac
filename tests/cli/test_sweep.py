"""A multirun: one mean network, one fit per strategy, one table over all jobs; and taken up where it stopped."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import CLI, TINY, UNET, contents, results
from PIL import Image

from optcov.cli import fit, tasks
from optcov.training import MeanStage, VarianceStage
from optcov.variance.analytic import Analytic

STRATEGIES = ["beta", "analytic", "npr_dpm", "sn_dpm"]
STEPS = [2, 3]
WITHOUT_STEPS = [argument for argument in [*TINY, *UNET] if not argument.startswith("sampler.num_steps")]


def scores(folder: Path) -> dict[tuple[str, int, int], float]:
    """The metric in each job's results.json, by strategy, steps and seed."""
    found = {}
    for path in folder.glob("*/results.json"):
        job = results(path.parent)
        (score,) = job["metrics"].values()
        found[job["var"], job["num_steps"], job["seed"]] = score
    return found


def cells(folder: Path) -> dict[tuple[str, int], str]:
    """The cells of table.md, by row and number of steps."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    steps = [int(name.removesuffix(" steps")) for name in header[1:]]
    return {(row[0], step): cell for row in rows for step, cell in zip(steps, row[1:], strict=True)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the sweep of four strategies over two numbers of steps, and the fits it made, in order."""
    cli, fits = CLI(tmp_path_factory.mktemp("sweep")), []
    with pytest.MonkeyPatch.context() as patch:
        stage, calibrate = fit.run_stage, Analytic.calibrate

        def run_stage(job, stage_, *rest):
            fits.append("mean" if isinstance(stage_, MeanStage) else type(stage_.strategy).__name__)
            assert isinstance(stage_, (MeanStage, VarianceStage))
            return stage(job, stage_, *rest)

        def counted(strategy, *rest):
            fits.append(type(strategy).__name__)
            return calibrate(strategy, *rest)

        patch.setattr(fit, "run_stage", run_stage)
        patch.setattr(Analytic, "calibrate", counted)
        cli.raw("-m", *WITHOUT_STEPS, *jobs(STRATEGIES, STEPS))
    return cli.folder / "sweep", fits


def jobs(strategies: Sequence[str], steps: Sequence[int]) -> list[str]:
    return [
        f"var={','.join(strategies)}", f"sampler.num_steps={','.join(map(str, steps))}", "hydra.sweep.dir=sweep",
    ]  # fmt: skip


def test_one_mean_and_one_fit_per_strategy_for_all_jobs(sweep: tuple[Path, list[str]]):
    assert sweep[1] == ["mean", "Analytic", "NPR", "SN"]
    cache = sweep[0].parent / "outputs" / "cache"
    assert len(list(cache.glob("mean/*/mean.safetensors"))) == 1
    assert len(list(cache.glob("variance/*/variance.safetensors"))) == 3


def test_the_tables_hold_every_job(sweep: tuple[Path, list[str]]):
    folder = sweep[0]
    found = scores(folder)
    assert found.keys() == {(var, steps, 0) for var in STRATEGIES for steps in STEPS}
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == 8
    assert {(row["var"], int(row["num_steps"]), int(row["seed"])): float(row["fd_pixel_8"]) for row in rows} == found
    assert {Path(row["run"]) for row in rows} == {p.parent.relative_to(folder) for p in folder.glob("*/results.json")}
    table = cells(folder)
    assert table.keys() == {(var, steps) for var in STRATEGIES for steps in STEPS}
    for (var, steps), cell in table.items():
        assert cell.strip("*") == f"{found[var, steps, 0]:.4g}"
    assert "fd_pixel_8" in (folder / "table.md").read_text()
    assert "lower is better" in (folder / "table.md").read_text()


def test_the_best_of_each_column_is_bold(sweep: tuple[Path, list[str]]):
    found, table = scores(sweep[0]), cells(sweep[0])
    for steps in STEPS:
        best = min(found[var, steps, 0] for var in STRATEGIES)
        bold = [var for var in STRATEGIES if table[var, steps].startswith("**")]
        assert bold == [var for var in STRATEGIES if found[var, steps, 0] == best]
    assert sum(cell.startswith("**") for cell in table.values()) < len(table)


REPORT = {"report.html", "table.md", "table.csv", "table.tex", "fd_pixel_8.png", "variance.png", "samples.png"}


def test_the_sweep_leaves_its_report(sweep: tuple[Path, list[str]]):
    assert names(sweep[0]) == {*REPORT, "multirun.yaml"}
    for path in sweep[0].glob("*.png"):
        Image.open(path).verify()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and path.suffix not in (".log", ".lock")} - {
        ".lock"
    }


def test_evaluate_writes_the_report_again_and_over_runs_of_any_folders(sweep: tuple[Path, list[str]], run: CLI):
    folder, _ = sweep
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in REPORT}
    for name in before:
        (folder / name).unlink()
    run.raw(f"runs={folder}", task="evaluate")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in REPORT} == before
    assert not (run.folder / "outputs").exists()  # its place is the sweep's folder
    run.raw(f"runs=[{folder}/*_beta_ddpm_2,{folder}/*_beta_ddpm_3]", task="evaluate")
    (other,) = run.folder.glob("outputs/report/*")
    assert names(other) == REPORT
    assert cells(other).keys() == {("beta", 2), ("beta", 3)}
    assert "both given" in run.refused(f"runs={folder}", f"run={folder}/0", task="evaluate", tiny=False)
    assert "runs = nowhere" in run.refused("runs=nowhere", task="evaluate", tiny=False)


def test_a_sweep_run_again_does_only_what_is_missing(run: CLI, count_calls):
    arguments = ["-m", *WITHOUT_STEPS, *jobs(["beta", "sn_dpm"], [2, 3])]
    run.raw(*arguments)
    folder = run.folder / "sweep"
    before, table = contents(folder), cells(folder)
    lost = next(folder.glob("*_sn_dpm_*_3"))
    for path in (lost / "results.json", folder / "table.md", folder / "table.csv"):
        path.unlink()
    stages, evaluations = count_calls(fit, "run_stage"), count_calls(tasks, "evaluate_run")
    run.raw(*arguments)
    assert not stages
    assert len(evaluations) == 1
    after = contents(folder)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert {name for name in changed if "/" in name and not name.startswith(lost.name)} == set()
    assert f"{lost.name}/samples.png" not in changed  # drawn again, the same
    assert cells(folder) == table


def test_seeds_become_mean_and_spread_in_the_default_folder(run: CLI):
    run.raw("-m", *WITHOUT_STEPS, "seed=0,1", "var=beta,beta_tilde", "sampler.num_steps=3")
    (folder,) = (run.folder / "outputs" / "sweep").iterdir()
    found = scores(folder)
    assert len(found) == len(list(csv.DictReader((folder / "table.csv").open()))) == 4
    for (var, steps), cell in cells(folder).items():
        first, second = (found[var, steps, seed] for seed in (0, 1))
        std = abs(first - second) / 2**0.5  # of a sample, with n - 1
        assert cell.strip("*") == f"{(first + second) / 2:.4g} ± {std:.2g}"
    assert "2 seeds" in (folder / "table.md").read_text()


def test_rows_are_named_by_what_the_jobs_differ_in(run: CLI):
    """Two samplers, and a setting inside a group: no two different jobs share a cell."""
    run.raw("-m", *TINY, *UNET, "sampler=ddpm,ddim", "var=analytic", "var.num_images=4,8", "hydra.sweep.dir=sweep")
    folder = run.folder / "sweep"
    assert len(list(folder.glob("*/results.json"))) == 4
    rows = {row for row, _ in cells(folder)}
    assert len(rows) == 4
    assert all(re.search("ddpm|ddim", row) and re.search("num_images=(4|8)", row) for row in rows)


def test_a_job_that_is_refused_leaves_the_others_their_results(run: CLI):
    """The jobs after it run, too; the sweep ends with its sentence, and the tables say why one is missing."""
    with pytest.raises(SystemExit) as exit_:
        run.raw("-m", *TINY, *UNET, "var=iddpm,beta", "sampler=ddim", "hydra.sweep.dir=sweep")
    assert "sampler.eta must be 1" in str(exit_.value.code)
    assert "\n" not in str(exit_.value.code)
    folder = run.folder / "sweep"
    assert len(list(folder.glob("*_beta_*/results.json"))) == 1
    assert cells(folder).keys() == {("beta", 3)}
    (line,) = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("- ")]
    assert line.startswith("- 0_iddpm_ddim_3: sampler.eta must be 1 for LearnedRange")
    run.raw("runs=sweep", task="evaluate")
    assert "0_iddpm_ddim_3" in (folder / "report.html").read_text()


def test_jobs_side_by_side_share_one_mean(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """The joblib launcher: two processes at once, one of which trains while the other waits at the lock."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.backend=multiprocessing"]
    run.raw("-m", *TINY, *UNET, *launcher, "var=beta,npr_dpm", "hydra.sweep.dir=sweep")
    folder = run.folder / "sweep"
    logs = [path.read_text() for path in folder.glob("*/train.log")]
    assert len(logs) == 2
    assert sum("mean: fitting" in text for text in logs) == 1
    assert sum("mean: found" in text for text in logs) == 1
    assert len(list((run.folder / "outputs" / "cache").glob("mean/*/mean.safetensors"))) == 1
    found, table = scores(folder), cells(folder)
    assert table.keys() == {("beta", 3), ("npr_dpm", 3)}
    assert {cell.strip("*") for cell in table.values()} == {f"{score:.4g}" for score in found.values()}
