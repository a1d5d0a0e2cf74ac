"""Scores during training: what they are, that training does not feel them, and the weights that are kept by them."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CLI, composed, files, results, weights
from hydra.utils import instantiate
from PIL import Image

from optcov.cli import fit
from optcov.cli.build import build
from optcov.metric import FrechetPixelDistance, Reference, Score
from optcov.sampler import DDIMSampler, sample
from optcov.seeds import Stream, derive_seed
from optcov.training import Checkpoint, StageProgressBar
from optcov.training.tracking import Tracker, Tracking
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import BetaTilde

LONGER = [
    "var=npr_dpm", "trainer.max_steps=5", "checkpoint_every=1", "warmup_steps=2", "model.dropout=0.3",
    "data.batch_size=16", "callbacks.ema.decay=0.6",
]  # fmt: skip
TRACKED = [
    "callbacks=tracking", "callbacks.tracking.every_n_steps=2", "callbacks.tracking.num_samples=7",
    "callbacks.tracking.mean_steps=4", "sample_batch_size=7",
]  # fmt: skip


def tracked(folder: Path) -> dict[str, dict[int, float]]:
    """The scores in a run's metrics.csv, by name and step."""
    found: dict[str, dict[int, float]] = {}
    for row in csv.DictReader((folder / "metrics.csv").open()):
        for name, value in row.items():
            if name.startswith("track/") and value:
                found.setdefault(name.removeprefix("track/"), {})[int(row["step"])] = float(value)
    return found


def same(one: Path, other: Path, name: str) -> bool:
    """Whether two folders have one checkpoint: bitwise the same weights, and said to be the same."""
    kind: Any = Path(name).stem.removeprefix("best_")
    first, second = (Checkpoint.load(folder / name, kind, "mean_ckpt") for folder in (one, other))
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    return first.identity == second.identity


FITTED = ["checkpoints/mean.safetensors", "checkpoints/variance.safetensors"]
BEST = ["checkpoints/best_mean.safetensors", "checkpoints/best_variance.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tracked run that nothing interrupts."""
    return CLI(tmp_path_factory.mktemp("whole"))(*LONGER, *TRACKED)


def test_a_tracked_run_is_an_untracked_one_and_its_scores(run: CLI, whole: Path):
    """Bitwise the same weights, with dropout and averaged weights, found under the same keys, and the same results."""
    untracked = run(*LONGER, "sample_batch_size=7")
    assert all(same(whole, untracked, name) for name in FITTED)
    assert results(whole)["metrics"] == results(untracked)["metrics"]
    pictures = {f"tracking/{stage}_{step}.png" for stage in ("mean", "variance") for step in (2, 4, 5)}
    assert files(whole) == files(untracked) | pictures | set(BEST)
    for name in pictures:
        Image.open(whole / name).verify()
    scores = tracked(whole)
    assert {name: list(steps) for name, steps in scores.items()} == {
        "mean/fd_pixel_7": [2, 4, 5],
        "variance/fd_pixel_7": [2, 4, 5],
    }
    assert not tracked(untracked)


def test_without_an_average_and_between_accumulated_gradients_training_feels_nothing_either(run: CLI):
    other = ["~callbacks.ema", "trainer.accumulate_grad_batches=2"]
    settings = [*LONGER[:1], "trainer.max_steps=3", "model.dropout=0.3", *other]
    untracked = run(*settings, "hydra.run.dir=one", "cache_dir=one_cache")
    found = run(*settings, *TRACKED, "callbacks.tracking.every_n_steps=1", "hydra.run.dir=two", "cache_dir=two_cache")
    assert all(same(found, untracked, name) for name in FITTED)
    assert list(tracked(found)["mean/fd_pixel_7"]) == [1, 2, 3]


def scored_again(folder: Path, settings: list[str], mean_steps: int, count: int, batch_size: int) -> dict[str, float]:
    """The score of each stage of a run of ``var=npr_dpm``, with the plain call for notebooks, from its checkpoints.

    DDIM without noise for the mean; an equal number of whole batches for each process of several.
    """
    parts = build(composed(*settings))
    for module, name in ((parts.denoiser, FITTED[0]), (parts.strategy, FITTED[1])):
        module.load_state_dict(weights(folder / name))
    schedule, found = parts.denoiser.schedule, {}
    for stage, strategy, sampler in (
        ("mean", BetaTilde(parts.denoiser), DDIMSampler(mean_steps)),
        ("variance", parts.strategy, parts.sampler),
    ):
        times = EvenTrajectory().times(schedule, sampler.num_steps)
        drawn = -(-count // batch_size) * batch_size
        seed = derive_seed(0, Stream.TRACKING)
        images = sample(parts.denoiser, strategy, sampler, times, drawn, seed, batch_size, progress=False)
        metric = FrechetPixelDistance()
        metric.refer_to(Reference(parts.data.reference()))
        metric.update(images[:count])
        found[f"{stage}/fd_pixel_{count}"] = metric.compute()["fd_pixel"].value
    return found


def test_the_last_score_is_that_of_the_averaged_weights(whole: Path):
    expected = scored_again(whole, LONGER, mean_steps=4, count=7, batch_size=7)
    assert {name: steps[5] for name, steps in tracked(whole).items()} == expected


def test_an_interrupted_run_tracks_on(run: CLI, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """Each stage stopped in step 4 of 5, and gone on with in another folder: the same weights, scores and best."""
    for stage in ("1/3", "2/3"):

        def pressed(bar: StageProgressBar, trainer: Any, *args: Any, stage: str = stage) -> None:
            if bar.description.startswith(stage) and trainer.global_step == 4:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(StageProgressBar, "on_train_batch_end", pressed)
            with pytest.raises(SystemExit):
                run(*LONGER, *TRACKED, f"hydra.run.dir=stopped_{stage[0]}")
    ended = run(*LONGER, *TRACKED)
    assert all(same(ended, whole, name) for name in [*FITTED, BEST[1]])
    assert same(run.folder / "stopped_2", whole, BEST[0])
    expected = tracked(whole)["variance/fd_pixel_7"]
    found = tracked(ended)["variance/fd_pixel_7"]
    assert found == {step: expected[step] for step in found}
    assert 5 in found
    assert 2 not in found  # scored before the interruption


def test_a_best_of_another_score_is_forgotten():
    """As where the job of a sweep goes on with what one of other steps has left; the weights have nothing of them."""

    def tracking(*arguments: str) -> Tracker:
        cfg = composed(*TRACKED, *arguments)
        settings: Tracking = instantiate(cfg.callbacks["tracking"])
        return settings.tracker(cfg, build(cfg), {})

    callback = tracking()
    state = {"score": 1.0, "step": 2, "weights": {}, "scored": callback.run.scored}
    callback.load_state_dict(state)
    assert callback.state_dict() == state
    for setting in (
        ["sampler.num_steps=2"], ["callbacks.tracking.num_samples=6"], ["callbacks.tracking.mean_steps=3"],
        ["conditional=true", "labels=[3,5]"],
    ):  # fmt: skip
        other = tracking(*setting)
        other.load_state_dict(state)
        assert other.state_dict() == {}


def test_a_network_that_knows_classes_is_tracked_with_the_labels_and_without_guidance(run: CLI):
    """Its score is that of the plain call with the labels, which without them answers another."""
    settings = [
        "conditional=true", "labels=[3,5]", "guidance=classifier_free", "guidance.weight=9", "var=beta",
        "optimizer.lr=0.01", "warmup_steps=1", "callbacks.ema.decay=0",
    ]  # fmt: skip
    folder = run(*settings, *TRACKED)
    parts = build(composed(*settings))
    parts.denoiser.load_state_dict(weights(folder / FITTED[0]))
    times = EvenTrajectory().times(parts.denoiser.schedule, 4)
    metric = FrechetPixelDistance()
    metric.refer_to(Reference(parts.data.reference()))
    found = []
    for labels in (parts.labels(7, 0), None):
        draw = partial(sample, parts.denoiser, BetaTilde(parts.denoiser), DDIMSampler(4), times, 7)
        metric.reset()
        metric.update(draw(derive_seed(0, Stream.TRACKING), 7, labels=labels, progress=False))
        found.append(metric.compute()["fd_pixel"].value)
    assert tracked(folder)["mean/fd_pixel_7"][2] == found[0] != found[1]


@pytest.mark.parametrize(("best", "higher"), [(5, False), (2, True)])
def test_the_best_weights_are_those_of_their_step_and_can_be_used(
    run: CLI, monkeypatch: pytest.MonkeyPatch, best: int, higher: bool, count_calls: Callable[[Any, str], list[Any]]
):
    """The mean that a run of two steps ends with is that of step 2; of the last step, it is the run's own."""
    settings = [line for line in LONGER if not line.startswith(("trainer.max_steps", "var="))]
    steps = iter((2, 4, 5))

    def answer(value: float) -> dict[str, Score]:
        return {"fd_pixel": Score(-float(value) if higher else float(value))}

    monkeypatch.setattr(FrechetPixelDistance, "higher_is_better", higher)
    monkeypatch.setattr(FrechetPixelDistance, "compute", lambda metric: answer(next(steps, 9) != best))
    found = run("var=beta", *settings, *TRACKED, "trainer.max_steps=5")
    shorter = run("var=beta", *settings, f"trainer.max_steps={best}", "hydra.run.dir=shorter")
    kept = Checkpoint.load(found / BEST[0], "mean", "mean_ckpt")
    last = Checkpoint.load(found / FITTED[0], "mean", "mean_ckpt")
    expected = weights(shorter / FITTED[0])
    assert kept.weights.keys() == expected.keys()
    assert all(torch.equal(kept.weights[name], expected[name]) for name in expected)
    assert (kept.key == last.key) == (best == 5)  # what is fitted to one is never taken for the other's

    stages = count_calls(fit, "run_stage")
    again = run(f"mean_ckpt={found / BEST[0]}", "hydra.run.dir=again", *settings)
    assert len(stages) == 1  # the variance alone
    assert weights(again / FITTED[0]).keys() == expected.keys()
    assert Checkpoint.load(again / FITTED[0], "mean", "mean_ckpt").identity == kept.identity


def test_of_what_is_found_in_the_cache_there_is_nothing_to_track(run: CLI):
    measured = ["var=analytic", "var.num_images=8"]
    run(*measured)
    folder = run("var=npr_dpm", *TRACKED, "hydra.run.dir=tracked")
    said = "fitted before, so that there is nothing to track"
    assert f"mean: {said}" in (folder / "train.log").read_text()
    assert list(tracked(folder)) == ["variance/fd_pixel_7"]
    log = (run(*measured, *TRACKED, "hydra.run.dir=measured") / "train.log").read_text()
    assert "variance: found" in log
    assert log.count(said) == 1  # of the mean: what is measured in one pass is never tracked


def test_a_tracked_run_can_be_evaluated_without_samples(run: CLI, whole: Path):
    folder = run(f"run={whole}", "metric=nll", "metric.nll.num_images=2", task="evaluate", tiny=False)
    assert list(results(folder)["metrics"]) == ["nll_test_2"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [(["callbacks.tracking.every_n_steps=0"], "callbacks.tracking.every_n_steps must be at least 1 (got 0)"),
     (["callbacks.tracking.num_samples=1"], "callbacks.tracking.num_samples must be at least 2 (got 1)"),
     (["callbacks.tracking.mean_steps=0"], "callbacks.tracking.mean_steps must be at least 1 (got 0)"),
     (["callbacks.tracking.mean_steps=51"], "(got 51)"),
     (["metric=nll"], "metric=fd_pixel"),
     (["trajectory=optimal"], "OptimalTrajectory")],
)  # fmt: skip
def test_what_can_not_be_tracked_is_refused(run: CLI, setting: list[str], sentence: str):
    assert sentence in run.refused(*TRACKED, *setting)
    assert not list(run.folder.rglob("*.json"))
