"""The Frechet distance from few images equals the one from covariances."""

import torch

from optcov.metric import FrechetPixelDistance, frechet_distance


def test_few_images_give_what_their_covariances_give() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator) for n in (20, 3000))
    many = many // 2
    moments = [(x.mean(0), x.T.cov()) for x in (images.flatten(1).double() / 127.5 - 1 for images in (few, many))]
    expected = float(frechet_distance(*moments[0], *moments[1]))
    for samples, reference in ((few, many), (many, few)):
        metric = FrechetPixelDistance()
        metric.update(samples[:7], real=False)
        metric.update(samples[7:], real=False)
        metric.update(reference, real=True)
        # roots of eigenvalues that are 0 up to rounding: sqrt(1e-16) each
        assert abs(metric.compute() / expected - 1) < 1e-6
