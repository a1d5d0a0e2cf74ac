"""Metrics of features: parity with torchmetrics and scikit-learn, and what all of them have in common."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projection import Projection, images, random
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TheirInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from optcov.metric import (
    CIFARFeatures,
    FeatureMetric,
    FrechetDistance,
    FrechetPixelDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    Reference,
    Score,
    update_all,
)
from optcov.metric.precision_recall import precision_recall

REAL, FAKE = images(150, 0), images(120, 1, high=200)


def scores(metric: FeatureMetric, real: Tensor = REAL, fake: Tensor = FAKE) -> dict[str, float]:
    metric.refer_to(Reference(real))
    for batch in fake.split(50):
        metric.update(batch)
    return {name: score.value for name, score in metric.compute().items()}


def inception_score(splits: int) -> InceptionScore:
    return InceptionScore(Projection(), splits)  # type: ignore[arg-type]


class AsModule(nn.Module):
    """What torchmetrics is given as its network."""

    num_features = 6

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.projection, self.logits = Projection(), logits

    def forward(self, x: Tensor) -> Tensor:
        features = self.projection(x).double()
        return self.projection.logits(features) if self.logits else features


def theirs(metric: Any) -> Any:
    metric.set_dtype(torch.float64)
    if isinstance(metric, TheirInceptionScore):
        metric.update(FAKE)
    else:
        metric.update(REAL, real=True)
        metric.update(FAKE, real=False)
    return metric.compute()


def test_the_frechet_distance_against_torchmetrics():
    expected = theirs(FrechetInceptionDistance(feature=AsModule(), input_img_size=(3, 4, 4)))
    assert scores(FrechetDistance(Projection())) == {"fd_projection": pytest.approx(float(expected), rel=1e-6)}


def test_the_kernel_distance_against_torchmetrics():
    # all of the fewer samples in each subset; the reference has as many then
    ours = KernelDistance(Projection(), subsets=2, subset_size=len(FAKE))
    found = scores(ours, REAL[: len(FAKE)])["kid_projection"]
    peer = KernelInceptionDistance(feature=AsModule(), subsets=1, subset_size=len(FAKE))
    peer.set_dtype(torch.float64)
    peer.update(REAL[: len(FAKE)], real=True)
    peer.update(FAKE, real=False)
    assert found == pytest.approx(float(peer.compute()[0]), rel=1e-6)


def test_the_kernel_distance_over_subsets_is_unbiased_and_repeats():
    metric = KernelDistance(Projection(), subsets=200, subset_size=30)
    whole = scores(KernelDistance(Projection(), 2, len(FAKE)), REAL[: len(FAKE)])["kid_projection"]
    found = scores(metric, REAL[: len(FAKE)])["kid_projection"]
    details = metric.compute()["kid_projection"].details
    assert abs(found - whole) < 5 * details["standard_deviation"] / 200**0.5
    assert metric.compute()["kid_projection"].value == found


def test_the_inception_score_against_torchmetrics():
    expected, _ = theirs(TheirInceptionScore(feature=AsModule(logits=True), splits=1))
    assert scores(inception_score(1)) == {"inception_score": pytest.approx(float(expected), rel=1e-6)}


def test_the_inception_score_of_splits_is_that_of_each():
    metric = inception_score(3)
    found = scores(metric)["inception_score"]
    split = torch.from_numpy(np.random.default_rng(0).random((40, 3)).argsort(1)).flatten()
    each = torch.tensor([scores(inception_score(1), fake=FAKE[split == i])["inception_score"] for i in range(3)])
    assert found == pytest.approx(float(each.mean()), rel=1e-5)
    spread = metric.compute()["inception_score"].details["standard_deviation"]
    assert spread == pytest.approx(float(each.std(correction=0)), rel=1e-3)
    metric.reset()
    for batch in FAKE.split(7):  # again from the first sample, and whatever the batches
        metric.update(batch)
    assert metric.compute()["inception_score"].value == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("classes", [5, 10, 20])
def test_the_inception_score_does_not_feel_that_classes_come_in_turn(classes: int):
    """As with ``labels=[0,1,...]``, of which every tenth are of one class or two."""
    samples = FAKE[:classes].repeat(1000 // classes, 1, 1, 1)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    in_turn = scores(inception_score(10), fake=samples)["inception_score"]
    shuffled = scores(inception_score(10), fake=samples[order])["inception_score"]
    assert in_turn == pytest.approx(shuffled, rel=0.05)


def test_the_inception_score_is_one_where_all_samples_are_of_one_class():
    assert scores(inception_score(2), fake=FAKE[:1].repeat(8, 1, 1, 1))["inception_score"] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_against_nearest_neighbours_of_scikit_learn(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optcov.metric.precision_recall.CHUNK", 37)
    real, fake = random(150, 5), random(130, 5, seed=1) * 0.6 + 0.4

    def within(points: Tensor, centres: Tensor) -> float:
        neighbours = NearestNeighbors(n_neighbors=k + 1).fit(centres.numpy())
        radii = torch.from_numpy(neighbours.kneighbors(centres.numpy())[0][:, k])
        distances = (points[:, None] - centres[None]).norm(dim=2)
        return float((distances <= radii).any(1).double().mean())

    precision, recall = precision_recall(real, fake, k)
    assert (precision, recall) == (within(fake, real), within(real, fake))
    assert 0 < recall < precision < 1


def test_samples_far_from_the_reference_are_neither_precise_nor_cover_it():
    assert precision_recall(random(50, 4), random(60, 4, seed=1) + 100) == (0, 0)
    same = random(50, 4)
    assert precision_recall(same, same) == (1, 1)


@pytest.mark.parametrize(
    "metric",
    [
        FrechetDistance(Projection()), FrechetPixelDistance(), KernelDistance(Projection(), 5, 20), inception_score(2),
        PrecisionRecall(Projection()),
    ],
    ids=lambda metric: metric.name,
)  # fmt: skip
def test_a_reset_forgets_the_samples_and_keeps_the_reference(metric: FeatureMetric):
    first = scores(metric)
    metric.reset()
    with pytest.raises(ValueError, match=r"must be"):
        metric.compute()
    network = metric.features
    seen = getattr(network, "seen", 0)
    metric.update(REAL[:60])
    assert {name: score.value for name, score in metric.compute().items()} != first
    metric.reset()
    metric.update(FAKE.float() / 127.5 - 1)  # as samplers return them
    assert {name: score.value for name, score in metric.compute().items()} == pytest.approx(first, rel=1e-9)
    if isinstance(network, Projection):
        assert network.seen == seen + 60 + len(FAKE)  # the reference was not looked at again
    with pytest.raises(ValueError, match=r"3 of 5 .*NaN"):
        metric.update(torch.full((5, 3, 4, 4), 0.5).index_fill_(0, torch.tensor([0, 2, 3]), torch.nan))
    with pytest.raises(ValueError, match=r"int64"):
        metric.update(FAKE.long())
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\) of the reference \(got \(3, 4, 3\)\)"):
        metric.update(FAKE[..., :3])
    assert not isinstance(metric, nn.Module)
    assert not isinstance(network, nn.Module)


def test_a_subclass_may_set_its_fields_after_those_of_its_base():
    """Its state, which needs them, is not made before."""

    class Windowed(FeatureMetric[Tensor]):
        name = "windowed"

        def __init__(self, size: int) -> None:
            super().__init__(Projection())
            self.size = size

        def new_state(self) -> Tensor:
            return torch.zeros(self.size)

        def update_features(self, features: Tensor) -> None:
            self.state[: len(features)] += features[: self.size, 0].float()

        def compute(self) -> dict[str, Score]:
            return {self.name: Score(float(self.state.sum()))}

    metric = Windowed(7)
    assert scores(metric, fake=FAKE[:5])["windowed"] != 0
    metric.reset()
    assert metric.compute()["windowed"].value == 0


def test_metrics_of_the_same_features_share_a_pass(tmp_path: Path):
    networks = [Projection(), Projection(), Projection(dim=4)]
    metrics = [KernelDistance(networks[0], 2, 20), FrechetDistance(networks[1]), FrechetDistance(networks[2])]
    for metric in metrics:
        metric.refer_to(Reference(REAL, tmp_path))
    assert [network.seen for network in networks] == [150, 0, 150]  # moments are taken from the features that are there
    update_all(metrics, FAKE)
    assert [network.seen for network in networks] == [270, 0, 270]
    alone = scores(FrechetDistance(Projection()))["fd_projection"]
    assert metrics[1].compute()["fd_projection"].value == pytest.approx(alone, rel=1e-9)


def test_a_frechet_distance_of_few_samples_warns(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        scores(FrechetDistance(Projection()), fake=FAKE[:7])
        assert not caplog.records
        metric = FrechetDistance(Projection())
        scores(metric, fake=FAKE[:6])
        metric.compute()
    (said,) = caplog.messages
    assert "of 6 samples with 6 features" in said


@pytest.mark.parametrize("make", [lambda: FrechetDistance(Projection()), lambda: KernelDistance(Projection(), 2, 9),
                                  lambda: PrecisionRecall(Projection()), FrechetPixelDistance])  # fmt: skip
def test_without_a_reference(make: Any):
    metric = make()
    metric.update(FAKE)
    with pytest.raises(ValueError, match="call refer_to first"):
        metric.compute()


def test_features_that_are_not_finite():
    class Broken(Projection):
        def extract(self, images: Tensor) -> Tensor:
            return super().extract(images) / 0

    distance = FrechetDistance(Broken())
    with pytest.raises(ValueError, match="150 images are not all finite"):
        distance.refer_to(Reference(REAL))
    for metric in (distance, InceptionScore(Broken(), 1)):  # type: ignore[arg-type]
        metric.update(FAKE)
        with pytest.raises(ValueError, match="images are not all finite"):
            metric.compute()


def test_cifar_features_of_every_size_and_of_grey_images():
    network = CIFARFeatures(batch_size=3)
    colour = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = network(colour)
    assert features.shape == (5, 192)
    torch.testing.assert_close(features, CIFARFeatures()(colour), rtol=1e-4, atol=1e-5)
    flat = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    expected = network(flat[..., :32, :32])
    torch.testing.assert_close(network(flat), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(flat[..., :8, :8]), expected, rtol=1e-4, atol=1e-5)
    stripes = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).repeat(32).expand(1, 3, 128, 128)
    white = network(torch.full_like(stripes, 255))  # what every fourth pair of pixels is, without antialiasing
    assert (network(stripes) - expected).norm() < 0.25 * (network(stripes) - white).norm()
    grey = colour[:, :1]
    torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)), rtol=0, atol=0)
    assert network(grey[..., :8, :8]).isfinite().all()
    with pytest.raises(ValueError, match=r"1 or 3 channels .*\(2,\)"):
        FrechetDistance(network).check(Reference(torch.zeros(3, 2, dtype=torch.uint8)), 5)
