"""The Frechet distance from few images equals the one from covariances."""

import pytest
import torch

from optcov.metric import FrechetPixelDistance, Reference, frechet_distance


@pytest.mark.parametrize("count", [2, 10, 12, 13, 20, 48])
def test_few_images_give_what_their_covariances_give(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator) for n in (count, 3000))
    many = many // 2
    moments = [(x.mean(0), x.T.cov()) for x in (images.flatten(1).double() / 127.5 - 1 for images in (few, many))]
    expected = float(frechet_distance(*moments[0], *moments[1]))
    for samples, reference in ((few, many), (many, few)):
        metric = FrechetPixelDistance()
        metric.refer_to(Reference(reference))
        metric.update(samples[:1])
        metric.update(samples[1:])
        # roots of eigenvalues that are 0 up to rounding: sqrt(1e-16) each
        assert abs(metric.compute()["fd_pixel"].value / expected - 1) < 1e-6
