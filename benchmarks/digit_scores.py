"""Scores of samples of digits: Frechet distances of pixels and of a small classifier's features, and others."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from optcov.data import DigitsData
from optcov.metric.frechet import frechet_distance
from optcov.metric.precision_recall import precision_recall


class Digits(nn.Module):
    """A classifier of digits of two hidden layers; its features are those of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
        self.output = nn.Linear(32, 10)


@cache
def classifier() -> Digits:
    """Trained on the training digits by 1500 steps of gradient descent with momentum, always the same."""
    data = DigitsData()
    images, labels = data.normalize(data.load("train")), data.labels("train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Digits()
        weights = list(network.parameters())
        speed = [torch.zeros_like(each) for each in weights]
        for _ in range(1500):
            chosen = torch.randint(len(images), (128,))
            noisy = images[chosen] + 0.1 * torch.randn(len(chosen), *images.shape[1:])
            loss = nn.functional.cross_entropy(network.output(network.hidden(noisy)), labels[chosen])
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, slope, moving in zip(weights, slopes, speed, strict=True):
                    weight.sub_(0.05 * moving.mul_(0.9).add_(slope))
    return network.requires_grad_(False).eval()


def features(images: Tensor) -> Tensor:
    """Of images ``[n, ...]`` of 64 pixels, float64 ``[n, 32]``."""
    found: Tensor = classifier().hidden(images.reshape(-1, 1, 8, 8).float())
    return found.double()


class Reference:
    """Real images: what samples are compared with."""

    def __init__(self, images: Tensor, mean: Tensor | None = None, covariance: Tensor | None = None) -> None:
        self.images = images.flatten(1).double()
        self.pixels = (self.images.mean(0), self.images.T.cov()) if mean is None else (mean, covariance)
        self.deep = features(self.images)
        self.features = self.deep.mean(0), self.deep.T.cov()
        self.spread = float(torch.pdist(self.images[:1500]).mean())

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Of samples, ``[n, ...]``."""
        flat = samples.flatten(1).double()
        deep = features(flat)
        mean, covariance = self.pixels
        assert covariance is not None
        precision, recall = precision_recall(self.deep, deep)
        return {
            "fd_pixel": float(frechet_distance(flat.mean(0), flat.T.cov(), mean, covariance)),
            "features": float(frechet_distance(deep.mean(0), deep.T.cov(), *self.features)),
            "energy": float(2 * torch.cdist(flat, self.images[:1500]).mean() - torch.pdist(flat).mean() - self.spread),
            "precision": precision,
            "recall": recall,
        }
