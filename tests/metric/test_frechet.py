"""Frechet distance: closed forms, and parity with torchmetrics and with scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance

from optcov.data.pixels import from_uint8
from optcov.metric import FrechetPixelDistance, frechet_distance, with_count


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


def test_against_torchmetrics():
    real, fake = images(300, 0), images(200, 1, high=200)
    theirs = FrechetInceptionDistance(feature=Pixels(), normalize=False, input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    ours = FrechetPixelDistance()
    for batch in real.split(77):
        theirs.update(batch, real=True)
        ours.update(batch, real=True)
    for batch in fake.split(64):
        theirs.update(batch, real=False)
        ours.update(batch, real=False)
    assert ours.compute() == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_against_numpy_whatever_the_batches():
    real, fake = images(300, 0), images(50, 1, 100, 180)
    scores = []
    for size in (7, 300):
        metric = FrechetPixelDistance()
        for batch in real.split(size):
            metric.update(batch, real=True)
        for batch in fake.split(size):
            metric.update(batch, real=False)
        scores.append(metric.compute())
    assert scores[0] == pytest.approx(scores[1], rel=1e-10)
    x, y = (from_uint8(each).flatten(1).double().numpy() for each in (real, fake))
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root).real
    assert scores[0] == pytest.approx(expected, rel=1e-6)


def test_a_set_has_no_distance_to_itself():
    metric, same = FrechetPixelDistance(), images(60, 0)
    metric.update(same, real=True)
    metric.update(same.flip(0), real=False)
    # covariances of 48 x 48 and rank 48; the root of rounding
    assert abs(metric.compute()) < 1e-5


@pytest.mark.parametrize(("real", "fake"), [(0, 5), (5, 0), (5, 1), (1, 5), (0, 0)])
def test_fewer_than_two_samples_are_refused(real: int, fake: int):
    metric = FrechetPixelDistance()
    if real:
        metric.update(images(real, 0), real=True)
    if fake:
        metric.update(images(fake, 1), real=False)
    with pytest.raises(ValueError, match="at least 2"):
        metric.compute()


@pytest.mark.parametrize(
    ("count", "name"),
    [(8, "fd_8"), (999, "fd_999"), (1000, "fd_1k"), (2000, "fd_2k"), (2500, "fd_2500"), (50_000, "fd_50k"),
     (50_001, "fd_50001")],
)  # fmt: skip
def test_the_name_says_the_number_of_samples(count: int, name: str):
    assert with_count("fd", count) == name
