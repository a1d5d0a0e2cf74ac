"""Reports over runs on disk: found, compared, written; made of ``results.json`` files that no training wrote."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from optcov.report import (
    check_comparable,
    collect,
    gather,
    labels,
    metric_names,
    picture,
    scores,
    table,
    write_report,
)
from optcov.report.picture import first_samples
from optcov.report.write import sample_cells


def make(folder: Path, metrics: dict[str, float] | None = None, **facts: Any) -> Path:
    """A run that has ended."""
    (folder / ".hydra").mkdir(parents=True)
    found = {
        "format": 1, "metrics": metrics or {"fd": 1.0}, "standard_errors": {}, "higher_is_better": [],
        "var": "beta", "data": "digits", "sampler": "ddpm", "num_steps": 5, "nfe": 5, "seed": 0, "overrides": {},
        "num_samples": 16, "data_shape": [1, 8, 8],
    } | facts  # fmt: skip
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def test_runs_multiruns_patterns_and_lists_are_found_once_and_in_order(tmp_path: Path):
    for i in range(11):
        make(tmp_path / "sweep" / f"{i}_job", seed=i)
    make(tmp_path / "train" / "one")
    (tmp_path / "train" / "note.txt").write_text("not a run")
    (tmp_path / "sweep" / "wandb").mkdir()
    names = [run.folder.name for run in gather(tmp_path / "sweep").ended]
    assert names == [f"{i}_job" for i in range(11)]
    mixed = gather(
        [str(tmp_path / "sweep/1*_job"), tmp_path / "train" / "*", tmp_path / "sweep", f"{tmp_path}/train/one"]
    )
    assert [run.folder.name for run in mixed.ended] == ["1_job", "10_job", "one", *(n for n in names if n[0] != "1")]
    assert mixed.frame()["run"].tolist()[:3] == ["sweep/1_job", "sweep/10_job", "train/one"]
    make(tmp_path / "sweep" / "3_job" / "evaluate" / "again")
    assert [run.folder.name for run in gather(f"{tmp_path}/sweep/*/evaluate/*").ended] == ["again"]
    assert len(gather(tmp_path / "sweep").ended) == 11  # what was scored again is in no table of the multirun


def test_a_run_that_did_not_end_is_told_with_its_last_words(tmp_path: Path):
    make(tmp_path / "0")
    (tmp_path / "1").mkdir()  # refused
    (tmp_path / "1" / "train.log").write_text("[time][optcov.cli.main][ERROR] - sampler.eta = 0 has no meaning\n")
    (tmp_path / "2" / ".hydra").mkdir(parents=True)  # killed
    found = gather(tmp_path)
    assert [(place.name, words) for place, words in found.unfinished] == [
        ("1", "sampler.eta = 0 has no meaning"),
        ("2", "no log"),
    ]
    assert len(found.frame()) == 1


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda path: path.write_text(path.read_text()[:40]), ["damaged", "not JSON"]),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), ["damaged"]),
        (lambda path: path.write_text("[1, 2]"), ["damaged"]),
        (lambda path: path.write_text('{"format": 1, "var": "beta"}'), ["damaged", "metrics"]),
        (lambda path: path.write_text('{"format": 7, "metrics": {}}'), ["format", "must be 1 (got 7)"]),
    ],
)
def test_results_that_can_not_be_read_are_named(tmp_path: Path, spoil: Any, parts: list[str]):
    make(tmp_path / "a")
    spoil(make(tmp_path / "b") / "results.json")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "b" / "results.json"))) as raised:
        gather(tmp_path)
    assert all(part in str(raised.value) for part in parts)
    assert "\n" not in str(raised.value)


def test_folders_without_a_run_and_runs_without_a_common_metric(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for source, words in (("empty", "contains no run"), ("nowhere", "not a folder"), ("x*", "matches no run")):
        with pytest.raises(ValueError, match=f"runs = .*{re.escape(source)}.*{words}"):
            gather(tmp_path / source)
    with pytest.raises(ValueError, match=r"runs must .*\[\]"):
        gather([])
    make(tmp_path / "sweep" / "a", {"fd_200": 1.0})
    make(tmp_path / "sweep" / "b", {"fd_2k": 1.0})
    with pytest.raises(ValueError, match=r"metric in common \(.*a has fd_200, .*b has fd_2k"):
        check_comparable(gather(tmp_path / "sweep"))
    check_comparable(gather(tmp_path / "sweep" / "a"))
    (tmp_path / "killed" / ".hydra").mkdir(parents=True)
    with pytest.raises(ValueError, match="killed is not finished"):
        check_comparable(gather(tmp_path / "killed"))


def test_a_setting_that_one_command_left_out_is_read_from_its_config(tmp_path: Path):
    """Runs of two commands: an override of the one is the default of the other."""
    make(tmp_path / "a", overrides={"var.num_images": "4", "logger.wandb.project": "mine"})
    (make(tmp_path / "b") / ".hydra" / "config.yaml").write_text("var: {num_images: 128}\n")
    (make(tmp_path / "c") / ".hydra" / "config.yaml").write_text("var: {num_images: 4}\n")
    assert labels(collect(tmp_path)).tolist() == ["4 (a)", "128", "4 (c)"]


def test_no_two_runs_of_one_seed_are_averaged(tmp_path: Path):
    """A run and its score again are not two seeds; scores of two metrics may share a row."""
    make(tmp_path / "a", {"fd": 1.0})
    make(tmp_path / "b", {"fd": 3.0})
    make(tmp_path / "c", {"nll": 3.0})
    frame = collect(tmp_path)
    assert labels(frame).tolist() == ["beta (a)", "beta (b)", "beta"]
    assert table(frame, "fd")["5 steps"].tolist() == ["**1**", "3"]


def test_cells_hold_mean_and_spread_of_seeds_and_the_best_is_bold_either_way(tmp_path: Path):
    rng, values = np.random.default_rng(0), {}
    for var in ("beta", "sn_dpm"):
        for steps in (5, 10):
            values[var, steps] = rng.random(3)
            for seed, value in enumerate(values[var, steps]):
                metrics = {"fd": value, "recall": value}
                make(
                    tmp_path / f"{var}{steps}{seed}",
                    metrics,
                    var=var,
                    num_steps=steps,
                    seed=seed,
                    higher_is_better=["recall"],
                )
    frame = collect(tmp_path)
    assert metric_names(frame) == ["fd", "recall"]
    for metric, best in (("fd", min), ("recall", max)):
        found = scores(frame, metric)
        assert found.heading.endswith("mean ± std over 3 seeds")
        assert ("higher" in found.heading) == (metric == "recall")
        for steps in (5, 10):
            winner = best(("beta", "sn_dpm"), key=lambda var: values[var, steps].mean())
            for var in ("beta", "sn_dpm"):
                cell = table(frame, metric).loc[var, f"{steps} steps"]
                assert cell.strip("*") == f"{values[var, steps].mean():.4g} ± {values[var, steps].std(ddof=1):.2g}"
                assert cell.startswith("**") == (var == winner)
    latex = scores(frame, "fd").to_latex()
    assert all(part in latex for part in (r"\toprule", r"\bottomrule", r"sn\_dpm", r"$\pm$", r"\textbf{"))
    assert latex.count(r"\textbf") == 2


def test_the_standard_error_of_a_single_run_is_shown_and_in_the_frame(tmp_path: Path):
    make(tmp_path / "a", {"nll": 3.5, "fd": 1.0}, standard_errors={"nll": 0.01})
    make(tmp_path / "b", {"nll": 3.4}, var="sn_dpm", standard_errors={"nll": 0.02})
    frame = collect(tmp_path)
    assert metric_names(frame) == ["nll", "fd"]
    assert frame["nll_se"].tolist() == [0.01, 0.02]
    assert table(frame, "nll")["5 steps"].to_dict() == {"beta": "3.5 ± 0.01", "sn_dpm": "**3.4 ± 0.02**"}
    assert "standard error" in scores(frame, "nll").heading
    assert list(table(frame, "fd").index) == ["beta"]  # no empty row for a run without the metric


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "img":
            self.images.append(given["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_is_whole_and_its_page_needs_no_other_file(tmp_path: Path):
    for i, (var, steps) in enumerate((v, k) for v in ("beta", "<sn>") for k in (5, 10)):
        run = make(
            tmp_path / "sweep" / f"{i}", {"fd": 1.0 + i, "nll": 5.0 - i}, var=var, num_steps=steps, nfe=2 * steps,
            reference="digits train (9)" if i == 0 else {"fd": "some.npz"},  # the first: as runs of before said it
        )  # fmt: skip
        picture(torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), run / "samples.png")
        t = np.linspace(0.01, 1, 5)
        curve = {"t": t, "s": t / 2, "mean": t / (2 + i), "q05": 0.0 * t, "q95": t, "upper": t}
        curve |= {"step_lower": t / 9, "step_mean": t / 5, "step_upper": t}
        pd.DataFrame(curve).to_csv(run / "variance.csv", index=False)
    (tmp_path / "sweep" / "3" / "variance.csv").write_text("t,C\n1,2\n")  # of no version we know: not drawn
    (tmp_path / "sweep" / "4").mkdir()
    (tmp_path / "sweep" / "4" / "train.log").write_text("stopped here")
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(gather(tmp_path / "sweep"), folder)
    assert {path.name for path in folder.iterdir()} == {
        "table.csv", "table.md", "table.tex", "fd.png", "nll.png", "variance.png", "samples.png", "report.html",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        Image.open(path).verify()
    page = Page((folder / "report.html").read_text())
    assert not {"script", "link", "iframe", "sn"} & page.tags
    assert len(page.images) == 4
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert {(folder / link).resolve().name for link in page.links} == {"0", "1", "2", "3", "4"}
    assert all((folder / link).is_dir() and not link.startswith("/") for link in page.links)
    assert all(words in page.words for words in ("<sn>", "stopped here", "fd (lower is better)", "1 not finished"))
    assert "digits train (9) | fd some.npz" in page.words
    assert "stopped here" in (folder / "table.md").read_text()


def test_the_corner_of_a_picture_is_its_first_samples(tmp_path: Path):
    """20 images make 5 rows of 4, 11 make 3 of 3, 64 make 8 of 8; no more than 4 of each are taken."""
    images = torch.randint(256, (64, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for count, columns, width in ((20, 4, 4), (11, 3, 3), (64, 8, 4)):
        picture(images[:count], tmp_path / "samples.png")
        corner = np.asarray(first_samples(tmp_path / "samples.png", (3, 5, 5)))
        assert corner.shape == (width * 60, width * 60, 3)  # 5 pixels and a line, 10 times as large
        for row in range(width):
            for column in range(width):
                shown = corner[row * 60 : row * 60 + 50 : 10, column * 60 : column * 60 + 50 : 10]
                assert np.array_equal(shown, images[row * columns + column].permute(1, 2, 0).numpy())


def test_of_samples_with_labels_a_report_shows_every_class(tmp_path: Path):
    """Ten rows of four; of others, the first four rows."""
    images = torch.full((100, 1, 8, 8), 255, dtype=torch.uint8)
    sizes = {}
    for labelled in (False, True):
        run = make(tmp_path / str(labelled), labelled=labelled)
        picture(images, run / "samples.png", labels=torch.arange(100) % 10 if labelled else None)
        runs = gather(run)
        (cell,) = sample_cells(runs, runs.frame()).values()
        sizes[labelled] = cell.size
    assert sizes == {False: (4 * 63, 4 * 63), True: (4 * 63, 10 * 63)}


@pytest.mark.parametrize(
    ("key", "tells"),
    [
        ("callbacks.ema.decay", True),
        ("metric.fid.reference", True),
        ("metric.nll.clip_x0", True),
        ("metric.precision_recall.k", True),
        ("trainer.precision", True),
        ("sample_precision", True),
        ("callbacks.tracking.num_samples", False),
        ("logger.wandb.project", False),
        ("metric.nll.num_images", False),
        ("metric.fid.features.batch_size", False),
        ("num_threads", False),
        ("trainer.accelerator", False),
        ("trainer.devices", True),
        ("channels_last", False),
    ],
)
def test_only_what_has_no_part_in_a_score_is_averaged_over(tmp_path: Path, key: str, tells: bool):
    for seed, value in enumerate("12"):
        make(tmp_path / value, seed=seed, overrides={key: value})
    assert labels(collect(tmp_path)).tolist() == (["1", "2"] if tells else ["beta", "beta"])


def test_a_trainer_and_an_experiment_tell_runs_apart(tmp_path: Path):
    make(tmp_path / "a", trainer="gpu", experiment="None")
    make(tmp_path / "b", trainer="cpu", experiment="None", seed=1)
    make(tmp_path / "c", trainer="cpu", experiment="mine", seed=2)
    assert labels(collect(tmp_path)).nunique() == 3


def test_a_trainer_tells_runs_apart_by_what_it_changes(tmp_path: Path):
    """Where a run was computed gives it no row of its own; in which precision, and for how many steps, does."""
    for seed, (trainer, precision) in enumerate(
        {"auto": "32-true", "cpu": "32-true", "gpu": "bf16-mixed", "mine": "32-true"}.items()
    ):
        steps = 3000 if trainer == "mine" else 2000
        settings = {"accelerator": trainer, "precision": precision, "max_steps": steps}
        run = make(tmp_path / trainer, trainer=trainer, seed=seed)
        OmegaConf.save({"trainer": settings}, run / ".hydra" / "config.yaml")
    auto, cpu, gpu, mine = labels(collect(tmp_path))
    assert auto == cpu == "trainer.precision=32-true, trainer.max_steps=2000"
    assert gpu == "trainer.precision=bf16-mixed, trainer.max_steps=2000"
    assert mine == "trainer.precision=32-true, trainer.max_steps=3000"


def test_runs_of_before_a_key_was_added_are_seeds_of_those_after(tmp_path: Path):
    make(tmp_path / "old")
    (tmp_path / "old" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    make(tmp_path / "new", guidance="none", seed=1, overrides={"conditional": "False", "sample_precision": "None"})
    assert labels(collect(tmp_path)).tolist() == ["beta", "beta"]
    make(tmp_path / "other", guidance="classifier_free", seed=2)
    assert "classifier_free" in labels(collect(tmp_path)).iloc[-1]
