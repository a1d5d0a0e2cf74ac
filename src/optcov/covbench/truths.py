"""Distributions of 8x8 pixels whose diffusion is closed form: the data of covbench's tasks."""

from __future__ import annotations

import hashlib
import math
import os
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor

from optcov.data import CIFAR10Data, DigitsData
from optcov.errors import ConfigError, must
from optcov.oracle import GaussianMixture

SHAPE, DIM = (1, 8, 8), 64
RIDGE = 0.01  # variance added to each pixel of a class of digits
BLUR = 0.01  # variance of the noise about each point of a finite data set
PATCHES = 2000
PATCHES_SHA256 = "534af7db6d77d919dde634c2e387c5dd48fb014cafd0ea73bdc356f1d4957c45"
LEAST_SHARE = 1e-18  # of a point in a posterior; what less is left out changes no double


class Unavailable(ConfigError):
    """A task or an estimator needs data or a package that is not here."""


class Truth(Protocol):
    """A distribution of x_0 in 64 dimensions whose diffusion is closed form; arguments as in `GaussianMixture`."""

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]: ...
    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...
    def log_density(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor: ...


class Blurred:
    """Points, each blurred by white noise: a mixture of as many Gaussians, of which none needs a matrix.

    Args:
        points: ``[n, d]``.
        variance: of the blur.
    """

    def __init__(self, points: Tensor, variance: float) -> None:
        self.points, self.variance = points.double(), variance

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[B, d]`` and covariance ``[B, d, d]`` of x_0; the arguments are those of `GaussianMixture`."""
        share = self._log_joint(x_t, alpha, sigma).softmax(1)
        mean, (total, sigma) = self._mean(x_t, alpha, sigma, share), self._total(x_t, alpha, sigma)
        spread = torch.stack([self._spread(row) for row in share])
        own = (self.variance * sigma**2 / total)[..., None] * torch.eye(x_t.shape[1], dtype=torch.float64)
        return mean, (sigma**2 / total)[..., None] ** 2 * spread + own

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The mean of `posterior` alone, without the cost of its covariance."""
        return self._mean(x_t, alpha, sigma, self._log_joint(x_t, alpha, sigma).softmax(1))

    def log_density(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``log q(x_t)`` in nats, ``[B]``."""
        total = alpha.double() ** 2 * self.variance + sigma.double() ** 2
        joint = self._log_joint(x_t, alpha, sigma).logsumexp(1) - math.log(len(self.points))
        density: Tensor = joint - x_t.shape[1] / 2 * (2 * math.pi * total).log()
        return density

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[count, d]`` in float64."""
        chosen = torch.randint(len(self.points), (count,), generator=generator)
        noise = torch.randn(count, self.points.shape[1], dtype=torch.float64, generator=generator)
        drawn: Tensor = self.points[chosen] + self.variance**0.5 * noise
        return drawn

    def _mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, share: Tensor) -> Tensor:
        total, sigma = self._total(x_t, alpha, sigma)
        scale = alpha.double().expand(len(x_t))[:, None]
        mean: Tensor = (sigma**2 * (share @ self.points) + scale * self.variance * x_t) / total
        return mean

    def _spread(self, share: Tensor) -> Tensor:
        """The covariance of the points by their shares, ``[d, d]``."""
        kept = share > LEAST_SHARE
        points, weights = self.points[kept], share[kept, None]
        off = points - (weights * points).sum(0)
        return (weights * off).T @ off

    def _total(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of x_t about a point, and sigma, each ``[B, 1]``."""
        wide, narrow = alpha.double().expand(len(x_t))[:, None], sigma.double().expand(len(x_t))[:, None]
        return wide**2 * self.variance + narrow**2, narrow

    def _log_joint(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scale = alpha.double().expand(len(x_t))[:, None]
        far = (x_t**2).sum(1, keepdim=True) - 2 * scale * x_t @ self.points.T + scale**2 * (self.points**2).sum(1)
        exponent: Tensor = -far / (2 * self._total(x_t, alpha, sigma)[0])
        return exponent


def gaussian_field() -> GaussianMixture:
    """A Gaussian field of variance 1/4, whose correlation is exp(-distance / 2) at a distance in pixels."""
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    return GaussianMixture(torch.zeros(1, DIM), 0.25 * torch.exp(-torch.cdist(place, place) / 2)[None])


def digits_mixture() -> GaussianMixture:
    """Ten Gaussians, with the mean and covariance of each class of the training digits."""
    data = DigitsData()
    images, labels = data.normalize(data.load("train")).flatten(1).double(), data.labels("train")
    classes = [images[labels == label] for label in range(10)]
    covariances = torch.stack([each.T.cov() + RIDGE * torch.eye(DIM) for each in classes])
    weights = torch.tensor([float(len(each)) for each in classes])
    return GaussianMixture(torch.stack([each.mean(0) for each in classes]), covariances, weights)


def finite_digits() -> Blurred:
    """The 1500 training digits, each blurred by white noise."""
    data = DigitsData()
    return Blurred(data.normalize(data.load("train")).flatten(1), BLUR)


def cifar_patches() -> Blurred:
    """2000 grey patches of CIFAR-10, each blurred by white noise.

    Patch k is of training image 25 k, the mean of its channels, from row ``k mod 25`` and column ``k // 25 mod 25``.

    Raises:
        Unavailable: if ``OPTCOV_DATA`` has no CIFAR-10.
        ConfigError: if its images are not those of version 1.
    """
    root = f"{os.environ.get('OPTCOV_DATA', 'data')}/cifar10"
    with TemporaryDirectory() as folder:
        try:
            images = CIFAR10Data(root, folder, limit=PATCHES).load("train").clone()
        except ValueError as error:
            remedy = "set it to the folder that has cifar10/, or leave the task cifar_patches out"
            raise Unavailable(str(must("OPTCOV_DATA", "a folder with CIFAR-10", root, remedy))) from error
    grey = images.to(torch.int64).sum(1)  # times 3, whole numbers
    rows = [grey[k, k % 25 :][:8, k // 25 % 25 :][:, :8] for k in range(len(grey))]
    patches = torch.stack(rows)
    digest = hashlib.sha256(patches.to(torch.int16).numpy().tobytes()).hexdigest()
    if digest != PATCHES_SHA256:
        raise must(
            "OPTCOV_DATA", "a folder with CIFAR-10 in its published order", root, f"the patches have SHA-256 {digest}"
        )
    return Blurred((patches.double() / (3 * 127.5) - 1).flatten(1), BLUR)
