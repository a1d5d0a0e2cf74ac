"""Frechet distance: closed forms, and parity with torchmetrics and with scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance

from optcov.data.pixels import from_uint8
from optcov.metric import FrechetPixelDistance, Reference, frechet_distance, with_count
from optcov.metric.moments import Moments


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(dim: int, seed: int, rank: int | None = None) -> Tensor:
    root = random(dim, rank or dim + 2, seed=seed)
    return root @ root.T


def test_isotropic_gaussians_in_closed_form():
    """``||mu_1 - mu_2||^2 + d (s_1 - s_2)^2``."""
    d, mean = 5, random(5)
    eye = torch.eye(d, dtype=torch.float64)
    found = frechet_distance(mean, 0.5**2 * eye, mean + 2, 3.0**2 * eye)
    assert_close(found, torch.tensor(4.0 * d + d * 2.5**2, dtype=torch.float64), rtol=1e-12, atol=0)


def test_commuting_covariances_in_closed_form():
    """With common axes: the distances of the standard deviations along them."""
    axes = torch.linalg.qr(random(6, 6)).Q
    first, second = random(6, seed=1) ** 2, random(6, seed=2) ** 2
    zero = torch.zeros(6, dtype=torch.float64)
    found = frechet_distance(zero, axes * first @ axes.T, zero, axes * second @ axes.T)
    assert_close(found, ((first.sqrt() - second.sqrt()) ** 2).sum(), rtol=1e-10, atol=1e-12)


def test_singular_covariances():
    """A point against a Gaussian is the trace; two lines at an angle: ``a + b - 2 sqrt(a b) |cos|``."""
    zero = torch.zeros(4, dtype=torch.float64)
    covariance = spd(4, 3)
    assert_close(frechet_distance(zero, covariance * 0, zero, covariance), covariance.trace(), rtol=1e-12, atol=0)
    u = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    v = torch.tensor([0.6, 0.8, 0, 0], dtype=torch.float64)
    found = frechet_distance(zero, 4 * torch.outer(u, u), zero, 9 * torch.outer(v, v))
    # the root of rounding, 1e-8, in each of the directions that carry nothing
    assert_close(found, torch.tensor(4 + 9 - 2 * 6 * 0.6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3, 1])
def test_against_scipys_matrix_root(rank: int | None):
    mean_1, mean_2 = random(8, seed=1), random(8, seed=2)
    first, second = spd(8, 4, rank), spd(8, 5)
    root = scipy.linalg.sqrtm((first @ second).numpy())
    expected = float(((mean_1 - mean_2) ** 2).sum() + first.trace() + second.trace()) - 2 * np.trace(root).real
    assert float(frechet_distance(mean_1, first, mean_2, second)) == pytest.approx(expected, rel=1e-6)


def test_it_is_symmetric_and_zero_only_at_equality():
    mean, first, second = random(7), spd(7, 1), spd(7, 2)
    there, back = frechet_distance(mean, first, -mean, second), frechet_distance(-mean, second, mean, first)
    assert_close(there, back, rtol=1e-10, atol=0)
    assert abs(float(frechet_distance(mean, first, mean, first))) < 1e-10 * float(first.trace())
    assert float(there) > 0.1


def images(count: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


class Pixels(nn.Module):
    """What torchmetrics is given as its feature network."""

    num_features = 48

    def forward(self, x: Tensor) -> Tensor:
        return from_uint8(x).flatten(1)


def score(real: Tensor, fake: Tensor, size: int = 1000) -> float:
    metric = FrechetPixelDistance()
    metric.refer_to(Reference(real))
    for batch in fake.split(size):
        metric.update(batch)
    return metric.compute()["fd_pixel"].value


@pytest.mark.parametrize("count", [200, 30, 9])
def test_against_torchmetrics(count: int):
    real, fake = images(300, 0), images(count, 1, high=200)
    theirs = FrechetInceptionDistance(feature=Pixels(), normalize=False, input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    for batch in real.split(77):
        theirs.update(batch, real=True)
    for batch in fake.split(64):
        theirs.update(batch, real=False)
    assert score(real, fake, 64) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_against_numpy_whatever_the_batches():
    real, fake = images(300, 0), images(50, 1, 100, 180)
    scores = [score(real, fake, size) for size in (7, 300)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-10)
    x, y = (from_uint8(each).flatten(1).double().numpy() for each in (real, fake))
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root).real
    assert scores[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [60, 20, 10])
def test_a_set_has_no_distance_to_itself(count: int):
    same = images(count, 0)
    assert abs(score(same, same.flip(0))) < 1e-5  # the root of rounding


def test_the_memory_of_moments_does_not_grow_with_the_number_of_features():
    moments, features = Moments(), random(500, 6)
    for i, each in enumerate(features, 1):
        moments.update(each[None])
        assert len(moments.rows if moments.rows is not None else []) == (i if i <= 6 else 0)
        if i in (2, 6, 7, 500):
            mean, covariance = moments.mean_and_covariance()
            assert_close(mean, features[:i].mean(0), rtol=1e-12, atol=1e-12)
            assert_close(covariance, features[:i].T.cov(), rtol=1e-10, atol=1e-12)
            again, root = moments.mean_and_root()
            assert_close(again, mean, rtol=1e-12, atol=1e-12)
            assert_close(root.T @ root, covariance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count: int):
    with pytest.raises(ValueError, match="at least 2"):
        score(images(5, 0), images(count, 1))
    if count:
        with pytest.raises(ValueError, match="at least 2"):
            score(images(count, 0), images(5, 1))


@pytest.mark.parametrize(
    ("count", "name"),
    [(8, "fd_8"), (999, "fd_999"), (1000, "fd_1k"), (2000, "fd_2k"), (2500, "fd_2500"), (50_000, "fd_50k"),
     (50_001, "fd_50001")],
)  # fmt: skip
def test_the_name_says_the_number_of_samples(count: int, name: str):
    assert with_count("fd", count) == name
