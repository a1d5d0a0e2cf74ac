"""Parity with torch-fidelity, where it is installed: no dependency, for it drags in torchvision.

Run it with ``pip install --no-deps torch-fidelity`` in an environment to throw away.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from projection import Projection, images, inception_by_formula, waves

from optcov.metric import FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall, Reference

SPEC = importlib.util.find_spec("torch_fidelity")
pytestmark = pytest.mark.skipif(SPEC is None, reason="needs torch-fidelity")


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of torch-fidelity without what imports torchvision: its package and its reader of images."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(Path(str(SPEC.origin)).parent)]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", MagicMock())
    return lambda name: import_module(f"torch_fidelity.{name}")


@pytest.mark.parametrize("shape", [(32, 32), (299, 299), (64, 48), (320, 400)])
def test_inception(peer: Callable[[str], Any], tmp_path: Path, shape: tuple[int, int]):
    ours = inception_by_formula()
    torch.save(ours.state_dict(), tmp_path / "weights.pth")
    theirs = peer("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth")
    )
    images = waves(shape)
    with torch.no_grad():
        features = ours(images.float())
        expected, logits = theirs(images)
    print(
        f"\n{shape}: features differ by {(features - expected).abs().max() / expected.abs().max():.1e} of their largest"
    )
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(
        features @ ours.fc.weight.T, logits, rtol=1e-4, atol=1e-5 * float(logits.detach().abs().max())
    )


def test_scores_of_features(peer: Callable[[str], Any]):
    network = Projection(8)
    metrics = [FrechetDistance(network), KernelDistance(network, 2, 600), PrecisionRecall(network)]
    scores = {}
    for metric in metrics:
        metric.refer_to(Reference(images(600, 0)))
        metric.update(images(600, 1, high=200))
        scores |= {name.removesuffix("_projection"): score.value for name, score in metric.compute().items()}
    real, fake = network(images(600, 0)).double(), network(images(600, 1, high=200)).double()
    fid, kid, prc = peer("metric_fid"), peer("metric_kid"), peer("metric_prc")
    statistics = [fid.fid_features_to_statistics(features) for features in (fake, real)]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert scores["fd"] == pytest.approx(theirs[fid.KEY_METRIC_FID], rel=1e-6)
    settings = {"kid_subsets": 1, "kid_subset_size": 600, "prc_neighborhood": 3, "verbose": False}
    theirs = kid.kid_features_to_metric(fake, real, **settings)
    assert scores["kid"] == pytest.approx(theirs[kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    theirs = prc.prc_features_to_metric(fake, real, **settings)
    assert scores["precision"] == pytest.approx(theirs[prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert scores["recall"] == pytest.approx(theirs[prc.KEY_METRIC_RECALL], abs=1e-6)


def test_the_inception_score(peer: Callable[[str], Any]):
    metric, samples = InceptionScore(Projection(), 10), images(500, 0)  # type: ignore[arg-type]
    metric.update(samples)
    found = metric.compute()["inception_score"]
    # of each ten samples in a row, our splits hold one each
    split = torch.from_numpy(np.random.default_rng(0).random((50, 10)).argsort(1)).flatten()
    logits = metric.inception.logits(metric.features(samples[split.argsort()]))
    isc = peer("metric_isc")
    theirs = isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert found.value == pytest.approx(theirs[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert found.details["standard_deviation"] == pytest.approx(theirs[isc.KEY_METRIC_ISC_STD], rel=1e-5)
