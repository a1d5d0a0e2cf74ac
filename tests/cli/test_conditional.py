"""Classes and guidance through the command line: one conditional run, one with a classifier, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CLI, composed, contents, files, results, weights
from PIL import Image
from torch import Tensor

from optcov.cli import evaluate, fit
from optcov.cli.build import build
from optcov.data.batches import LabelledBatch
from optcov.report import by_class
from optcov.training import ClassifierStage, MeanStage, StageSettings, VarianceStage
from optcov.training.plan import plan_fits
from optcov.training.store import identity_key

CONDITIONAL = ["conditional=true", "guidance=classifier_free"]
CLASSIFIER = ["guidance=classifier", "guidance.classifier.channels=8", "var=analytic", "var.num_images=8"]


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with classifier-free guidance, to be read only."""
    return CLI(tmp_path_factory.mktemp("conditional"))(*CONDITIONAL, "guidance.weight=3", "var=sn_dpm")


def test_a_conditional_run_whole(run: CLI, conditional: Path):
    found = results(conditional)
    assert found["guidance"] == "classifier_free"
    assert found["nfe"] == 6  # two calls at each of three times
    assert found["labelled"]
    assert found["metrics"]["fd_pixel_8"] > 0
    assert weights(conditional / "checkpoints" / "mean.safetensors")["network.label.weight"].shape == (11, 32)

    before = contents(conditional)
    asked = [f"run={conditional}", "num_samples=12", "labels=[3,5,5]"]
    folder = run(*asked, task="sample", tiny=False)
    images, labels = np.load(folder / "samples.npz").values()
    assert labels.tolist() == [3, 5, 5] * 4
    assert images.shape == (12, 8, 8, 1)
    with Image.open(folder / "samples.png") as picture:  # a row for each of two classes, eight of 5, 7 times 9 x 9
        assert picture.size == (8 * 63, 2 * 63)
    again = run(*asked, "sample_batch_size=5", "hydra.run.dir=again", task="sample", tiny=False)
    assert np.abs(np.load(again / "samples.npz")["arr_0"].astype(int) - images).max() <= 1

    drawn = run(f"run={conditional}", "num_samples=20", "format=png", "guidance=none", task="sample", tiny=False)
    lines = (drawn / "labels.csv").read_text().splitlines()
    assert lines[0] == "file,label"
    assert [line.partition(",")[0] for line in lines[1:]] == [f"{i:06d}.png" for i in range(20)]
    assert len({line.partition(",")[2] for line in lines[1:]}) > 3  # as often as in the data
    assert results(run(f"run={conditional}", "guidance=none", task="evaluate", tiny=False))["nfe"] == 3
    run(f"run={conditional}", "mode=trajectory", "mode.rows=2", "hydra.run.dir=strip", task="sample", tiny=False)
    assert contents(conditional) == before


def test_a_run_with_a_classifier_whole(run: CLI, count_calls: Callable[[Any, str], list[tuple[Any, ...]]]):
    stages, profiles = count_calls(fit, "run_stage"), count_calls(evaluate, "variance_profile")
    folder = run(*CLASSIFIER, "guidance.weight=2")
    assert [type(call[1]) for call in stages] == [MeanStage, ClassifierStage]
    found = results(folder)
    assert (found["nfe"], found["classifier_calls"]) == (3, 3)
    assert "checkpoints/classifier.safetensors" in files(folder)
    assert "checkpoints/mean.safetensors" in files(folder)
    # other weights and variances of the same classifier, from the cache or the run's folder; the mean may know classes
    run(*CLASSIFIER, "guidance.weight=4", "var.num_images=9", "hydra.run.dir=other")
    assert len(stages) == 2
    folder = run(f"run={folder}", "labels=7", "num_samples=3", task="sample", tiny=False)
    assert np.load(folder / "samples.npz")["arr_1"].tolist() == [7, 7, 7]
    run(*CLASSIFIER, "conditional=true", "hydra.run.dir=both")
    assert [type(call[1]) for call in stages[2:]] == [MeanStage]
    # a classifier moves no covariance; a network that knows classes is asked as its samples will ask it
    assert len(profiles) == 3


def test_an_interrupted_classifier_goes_on(run: CLI, monkeypatch: pytest.MonkeyPatch):
    arguments = [*CLASSIFIER, "trainer.max_steps=4", "checkpoint_every=2", "guidance.classifier.dropout=0.3"]
    whole = CLI(run.folder / "whole")
    whole.folder.mkdir()
    expected = weights(whole(*arguments) / "checkpoints" / "classifier.safetensors")
    step, asked = ClassifierStage.training_step, []

    def stopped(stage: ClassifierStage, batch: Any, batch_idx: int) -> Tensor:
        asked.append(batch_idx)
        if batch_idx == 3:
            raise KeyboardInterrupt
        return step(stage, batch, batch_idx)

    monkeypatch.setattr(ClassifierStage, "training_step", stopped)
    with pytest.raises(SystemExit, match="stopped"):
        run(*arguments)
    monkeypatch.setattr(ClassifierStage, "training_step", lambda s, b, i: asked.append(i) or step(s, b, i))
    found = weights(run(*arguments) / "checkpoints" / "classifier.safetensors")
    assert asked == [0, 1, 2, 3, 2, 3]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_labels_reach_the_loss_and_some_are_hidden(monkeypatch: pytest.MonkeyPatch):
    cfg = composed("conditional=true", "label_dropout=0.25", "var=npr_dpm", *["guidance=classifier"])
    parts = build(cfg)
    labels = parts.data.labels("train")[:400]
    batch = LabelledBatch(parts.data.normalize(parts.data.train[:400]), labels)
    seen: list[Tensor] = []
    forward = parts.denoiser.network.forward
    monkeypatch.setattr(parts.denoiser.network, "forward", lambda x, t, y: seen.append(y) or forward(x, t, y))
    for stage in (
        MeanStage(parts.denoiser, StageSettings(torch.optim.Adam, label_dropout=0.25)),
        VarianceStage(parts.denoiser, parts.strategy, StageSettings(torch.optim.Adam, label_dropout=0.25)),
    ):
        assert stage.labelled
        stage.log = lambda *args, **kwargs: None
        stage.training_step(batch, 0)
        hidden = seen[-1] == 10
        assert 0.15 < hidden.double().mean() < 0.35  # 4.6 standard errors
        assert torch.equal(seen[-1][~hidden], labels[~hidden])


def test_an_unconditional_network_is_identified_as_before():
    """Caches stay valid: what changes these keys without need loses them, and with need raises FORMAT."""
    keys = []
    for extra in [], ["labels=null", "label_dropout=0.5", "guidance=classifier"], ["conditional=true"]:
        cfg = composed("var=npr_dpm", "schedule=linear", *extra)
        fits = plan_fits(cfg, build(cfg))
        keys.append((identity_key(fits.mean), identity_key(fits.variance)))
    plain, other, conditional = keys
    assert plain == other == ("c38155052b80080e", "d5bf8c995e593e26")
    assert not set(plain) & set(conditional)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["guidance=classifier_free"], ["guidance=classifier_free", "conditional=true"]),
        ([*CONDITIONAL, "label_dropout=0"], ["label_dropout must", "(got 0)", "0.1"]),
        (["conditional=true", "label_dropout=1"], ["label_dropout", "1"]),
        (["conditional=true", "labels=10"], ["labels must", "0 and 9 (got 10)"]),
        (["conditional=true", "labels=[3,12]"], ["labels must", "0 and 9 (got 12)"]),
        (["conditional=true", "labels=[]"], ["labels must", "(got [])"]),
        (["conditional=true", "labels=-1"], ["labels", "-1"]),
        (["conditional=true", "labels=three"], ["labels", "three"]),
        (["labels=3"], ["labels must", "(got 3)", "conditional=true"]),
        (["conditional=maybe"], ["conditional", "maybe"]),
        ([*CONDITIONAL, "guidance.weight=.inf"], ["guidance.weight", "inf"]),
        ([*CONDITIONAL, "guidance.weight=strong"], ["guidance.weight", "strong"]),
        ([*CONDITIONAL, "metric=nll"], ["metric = nll ", "(got ClassifierFreeGuidance)", "guidance=none"]),
        (["guidance=classifier", "metric=[fd_pixel,nll_ode]"], ["metric = nll_ode", "guidance=none"]),
        (["guidance=classifier", "guidance.classifier.channels=3"], ["guidance.classifier.channels", "3"]),
        (["+model.num_classes=5"], ["model.num_classes must", "(got 5)", "conditional=true"]),
        (["classifier_ckpt=none.safetensors", "guidance=classifier"], ["classifier_ckpt", "does not exist"]),
    ],
    ids=lambda value: "_".join(value) if "=" in "".join(value) else "",
)  # fmt: skip
def test_what_has_no_meaning_is_refused(
    run: CLI, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
):
    monkeypatch.setattr(fit, "run_stage", lambda *args: pytest.fail("a stage was fitted before the refusal"))
    sentence = run.refused(*arguments)
    assert "\n" not in sentence
    assert [part for part in parts if part not in sentence] == [], sentence
    assert files(run.folder) == set()


def test_data_without_classes_are_refused(run: CLI, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(tmp_path / "images" / f"{i}.png")
    data = ["data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8", "data.channels=1"]
    for choice in ("conditional=true", "guidance=classifier"):
        sentence = run.refused(choice, *data)
        assert sentence.startswith(choice.partition("=")[0])
        assert "has no classes" in sentence


def test_means_with_and_without_classes_are_not_taken_for_each_other(run: CLI, trained: Path, conditional: Path):
    plain, labelled = (folder / "checkpoints" / "mean.safetensors" for folder in (trained, conditional))
    sentence = run.refused("conditional=true", f"mean_ckpt={plain}")
    assert "was trained with num_classes = None, not 10: give" in sentence
    sentence = run.refused(f"mean_ckpt={labelled}")
    assert "was trained with num_classes = 10, not None: give" in sentence
    sentence = run.refused(f"run={trained}", "guidance=classifier_free", task="sample", tiny=False)
    assert "conditional=true" in sentence
    sentence = run.refused(f"run={trained}", "guidance=classifier", task="sample", tiny=False)
    assert "guidance = classifier was not trained in run" in sentence
    sentence = run.refused(f"run={trained}", "labels=3", task="sample", tiny=False)
    assert "(got 3)" in sentence
    sentence = run.refused(f"run={conditional}", "mode=interpolate_images", task="sample", tiny=False)
    assert "interpolate_images" in sentence


def test_checkpoints_without_a_null_label_are_refused_where_guidance_wants_it(run: CLI, conditional: Path):
    """Also a mean that a run was given, when the run is restored: its own label_dropout says nothing of the mean."""
    never = run("conditional=true", "label_dropout=0", "var=sn_dpm", "hydra.run.dir=never") / "checkpoints"
    mean = f"mean_ckpt={never / 'mean.safetensors'}"
    sentence = run.refused(*CONDITIONAL, "guidance.weight=3", mean)
    assert "mean_ckpt = " in sentence
    assert "label_dropout = 0" in sentence
    heir = run("conditional=true", mean, "var=beta", "hydra.run.dir=heir")  # has no use for the null label
    free = [f"run={heir}", "guidance=classifier_free"]
    assert "label_dropout = 0" in run.refused(*free, "guidance.weight=3", task="sample", tiny=False)
    run(*free, "guidance.weight=1", task="sample", tiny=False)

    known = f"mean_ckpt={conditional / 'checkpoints' / 'mean.safetensors'}"
    blind = run("conditional=true", "label_dropout=0", known, "var=sn_dpm", "hydra.run.dir=blind") / "checkpoints"
    asked = [*CONDITIONAL, "guidance.weight=3", "var=sn_dpm", known]
    sentence = run.refused(*asked, f"var_ckpt={blind / 'variance.safetensors'}")
    assert "var_ckpt = " in sentence
    assert "label_dropout = 0" in sentence


def test_likelihood_is_that_of_the_label(run: CLI):
    bits = []
    for extra in ([], ["conditional=true"]):
        folder = run(
            "experiment=oracle", "var=beta_tilde", "metric=nll", "metric.nll.num_images=60", "sampler.num_steps=20",
            "data.num_train=100", "data.num_test=60", *extra, f"hydra.run.dir={len(bits)}", tiny=False,
        )  # fmt: skip
        bits.append(results(folder)["metrics"]["nll_test_60"])
    assert bits[0] - bits[1] > 0.3


def test_each_sample_is_of_its_label_whatever_the_batch(run: CLI):
    few = ["data.num_train=100", "data.num_test=60", "num_samples=20", "sample_batch_size=7"]
    folder = run("experiment=oracle", "conditional=true", "var=beta_tilde", *few, tiny=False)
    drawn = run(f"run={folder}", "labels=[0,4,4]", *few[2:], task="sample", tiny=False)
    vectors, labels = np.load(drawn / "samples.npz").values()
    assert labels.tolist() == ([0, 4, 4] * 7)[:20]
    assert ((vectors[:, 0] > 127) == (labels == 0)).all()  # class 0 lies at (0.7, 0), class 4 at (-0.7, 0)


def test_a_class_a_row(tmp_path: Path):
    labels = torch.tensor([2, 0, 2, 2, 5])
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) + 1
    table = by_class(images, labels, count=9)
    assert table[:, :, 0, 0, 0].tolist() == [[2, 0, 0], [1, 3, 4], [5, 0, 0]]
    assert by_class(images, labels, count=2)[:, :, 0, 0, 0].tolist() == [[2], [1]]
