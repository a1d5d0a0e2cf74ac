"""What is kept of a reference, and statistics from files."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from projection import Projection, images

from optcov.metric import FrechetDistance, FrechetPixelDistance, Reference

REAL = images(100, 0)


def kept(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix == ".npz"]


def test_statistics_are_computed_once_and_kept_for_anyone_to_read(tmp_path: Path):
    network = Projection()
    first = Reference(REAL, tmp_path).statistics(network)
    again = Reference(REAL.clone(), tmp_path).statistics(network)
    assert network.seen == 100
    assert torch.equal(first.covariance, again.covariance)
    (path,) = kept(tmp_path)
    with np.load(path, allow_pickle=False) as file:
        features = network(REAL).double().numpy()
        np.testing.assert_allclose(file["mu"], features.mean(0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features.T), rtol=1e-6)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("change", ["pixel", "shape", "order", "network", "what"])
def test_other_images_networks_or_features_are_kept_apart(tmp_path: Path, change: str):
    network = Projection()
    Reference(REAL, tmp_path).statistics(network)
    other = REAL.clone()
    if change == "pixel":
        other[3, 0, 0, 0] ^= 1
    reference = Reference({"shape": other.view(100, 3, 2, 8), "order": other.flip(0)}.get(change, other), tmp_path)
    if change == "what":
        assert reference.features(network).shape == (100, 6)
    else:
        reference.statistics(Projection(dim=5) if change == "network" else network)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "pickle"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    network = Projection()
    expected = Reference(REAL, tmp_path).statistics(network)
    (path,) = kept(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[300] ^= 1
    path.write_bytes(
        {"truncated": bytes(content[:200]), "empty": b"", "pickle": pickle.dumps({"mu": 0})}.get(damage, bytes(content))
    )
    with caplog.at_level(logging.WARNING):
        found = Reference(REAL, tmp_path).statistics(network)
    assert "damaged" in caplog.text
    assert network.seen == 200
    assert torch.equal(found.covariance, expected.covariance)


def test_a_folder_that_can_not_be_written_costs_the_keeping_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = Reference(REAL, tmp_path / "file").statistics(Projection())
    assert "cannot be written" in caplog.text
    assert torch.equal(found.covariance, Reference(REAL).statistics(Projection()).covariance)


def test_a_distance_to_statistics_from_a_file_is_that_to_the_images(tmp_path: Path):
    fake, values = images(90, 1, high=200), []
    for make in (lambda path: FrechetDistance(Projection(), path), FrechetPixelDistance):
        features = make(None).features
        mean, covariance = (lambda x: (x.mean(0), np.cov(x.T)))(features(REAL).double().numpy())
        np.savez(tmp_path / "given.npz", mu=mean, sigma=covariance)
        for path in (None, str(tmp_path / "given.npz")):
            metric = make(path)
            metric.check(Reference(REAL), 90)
            metric.refer_to(Reference(REAL if path is None else REAL[:2]))
            metric.update(fake)
            (score,) = metric.compute().values()
            assert score.details == ({} if path is None else {"reference": path})
            values.append(score.value)
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert values[2] == pytest.approx(values[3], rel=1e-9)


def npz(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


MU, SIGMA = np.zeros(6), np.eye(6)
BAD = {
    "is not a file": lambda path: None,
    "damaged or not a .npz": lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
    "not a .npz of plain arrays": lambda path: npz(path, mu=np.array({"a": 1}), sigma=SIGMA),
    "contains mean, cov: give": lambda path: npz(path, mean=MU, cov=SIGMA),
    r"mu \[6\] and sigma \[5, 5\]": lambda path: npz(path, mu=MU, sigma=np.eye(5)),
    "NaN or infinity": lambda path: npz(path, mu=MU + np.nan, sigma=SIGMA),
    r"6 features of projection-6 \(got 5 of another network\)": lambda path: npz(path, mu=MU[:5], sigma=np.eye(5)),
    r"features of projection-6 \(got 6 of inception\)": lambda path: npz(path, mu=MU, sigma=SIGMA, network="inception"),
    r"images of shape \(3, 4, 4\), .*\(got \(3, 8, 8\)\)": lambda path: npz(
        path, mu=MU, sigma=SIGMA, data_shape=(3, 8, 8)
    ),
}


@pytest.mark.parametrize("sentence", BAD)
def test_statistics_that_can_not_be_used_are_refused_beforehand(tmp_path: Path, sentence: str):
    path = tmp_path / "given.npz"
    BAD[sentence](path)
    metric = FrechetDistance(Projection(), str(path))
    with pytest.raises(ValueError, match=sentence) as refused:
        metric.check(Reference(REAL), 10)
    assert str(path) in str(refused.value)


def test_references_that_are_none():
    with pytest.raises(ValueError, match=r"uint8 .*float32 \[5, 2\]"):
        Reference(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"at least 2 images \(got 1\)"):
        Reference(REAL[:1])
