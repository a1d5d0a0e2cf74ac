"""Closed-form diffusion of Gaussian-mixture data: the ground truth against which tests and users can check a method.

For ``x_0 ~ sum_k w_k N(mu_k, S_k)`` and ``x_t = alpha x_0 + sigma eps`` each component stays Gaussian,
``x_t | k ~ N(alpha mu_k, A_k)`` with ``A_k = alpha^2 S_k + sigma^2 I``, and given x_t

    responsibilities  p(k | x_t) ~ w_k N(x_t; alpha mu_k, A_k)
    E[x_0 | x_t, k]   = mu_k + alpha S_k A_k^{-1} (x_t - alpha mu_k)
    Cov[x_0 | x_t, k] = S_k - alpha^2 S_k A_k^{-1} S_k

The laws of total expectation and total variance then give the mean and covariance of x_0 given x_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optcov.parameterization import Eps, Parameterization
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import per_sample


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, in float64.

    Args:
        means: ``[K, d]``.
        covariances: ``[K, d, d]`` symmetric positive definite, or ``[K]`` variances of isotropic components.
        weights: ``[K]`` positive, normalised here; None for equal weights.
    Raises:
        ValueError: if the shapes do not fit together, a weight is not positive, or a covariance not positive definite.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | Sequence[float] | Sequence[Sequence[Sequence[float]]],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"means must be [components, dimensions] (got shape {tuple(self.means.shape)})")
        count, dim = self.means.shape
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.ndim == 1:
            covariances = covariances[:, None, None] * torch.eye(dim, dtype=torch.float64)
        if covariances.shape != (count, dim, dim):
            raise ValueError(
                f"covariances must be [{count}] variances or matrices [{count}, {dim}, {dim}] (got shape "
                f"{tuple(covariances.shape)})"
            )
        self.covariances = covariances
        weights = torch.ones(count) if weights is None else weights
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.weights.shape != (count,) or not bool((self.weights > 0).all()):
            raise ValueError(f"weights must be {count} positive numbers, one per component (got {weights})")
        self.weights = self.weights / self.weights.sum()
        # decompose S_k = U_k diag(s_k) U_k^T once; every A_k(t) has the same axes
        self.variances, self.axes = torch.linalg.eigh(covariances)
        if not bool((self.variances > 0).all()):
            raise ValueError("covariances must be positive definite (got an eigenvalue that is not positive)")

    @property
    def dim(self) -> int:
        """d, the number of dimensions."""
        return int(self.means.shape[1])

    def mean(self) -> Tensor:
        """``E[x_0]``, ``[d]``."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """``Cov[x_0]``, ``[d, d]``."""
        centred = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + torch.einsum(
            "k,ki,kj->ij", self.weights, centred, centred
        )

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[count, d]`` in float64."""
        component = self.draw_components(count, generator)
        z = torch.randn(count, self.dim, dtype=torch.float64, generator=generator)
        return self.means[component] + torch.einsum(
            "bij,bj->bi", self.axes[component], self.variances[component].sqrt() * z
        )

    def draw_components(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the component of each sample, int64 ``[count]``, as `sample` does with the same generator."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def posterior(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, components: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean ``[B, d]`` and covariance ``[B, d, d]`` of ``x_0`` given ``x_t = alpha x_0 + sigma eps``.

        Args:
            x_t: ``[B, d]``.
            alpha, sigma: amplitudes, 0-dimensional or ``[B]``.
            components: component of each sample, int64 ``[B]`` in 0..K, where K means unknown; None if all are unknown.
        """
        one_level = alpha.ndim == sigma.ndim == 0
        sigma = sigma.double().expand(len(x_t))
        responsibility, means, total = self._components(x_t, alpha, sigma, components)
        kept = sigma[:, None, None] ** 2 * self.variances.to(x_t.device) / total  # = s_k - alpha^2 s_k^2 / a_k
        kept = kept[:1] if one_level else kept  # they depend on x_t by its level alone
        axes = self.axes.to(x_t.device)
        covariances = torch.einsum("kij,bkj,klj->bkil", axes, kept, axes)
        mean = torch.einsum("bk,bki->bi", responsibility, means)
        centred = means - mean[:, None]
        covariance = torch.einsum("bk,bkij->bij", responsibility, covariances)
        return mean, covariance + torch.einsum("bk,bki,bkj->bij", responsibility, centred, centred)

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, components: Tensor | None = None) -> Tensor:
        """The mean of `posterior` alone, ``[B, d]``, without the cost of its covariance."""
        responsibility, means, _ = self._components(x_t, alpha, sigma, components)
        return torch.einsum("bk,bki->bi", responsibility, means)

    def _components(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, components: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``p(k | x_t)``, ``[B, K]``; ``E[x_0 | x_t, k]``, and the eigenvalues of A_k, each ``[B, K, d]``."""
        alpha, sigma = alpha.double().expand(len(x_t)), sigma.double().expand(len(x_t))
        axes, rotated, total = self._rotate(x_t, alpha, sigma)
        log_joint = self._log_joint(rotated, total)
        if components is not None:
            other = components[:, None] != torch.arange(len(self.weights), device=x_t.device)
            log_joint = log_joint.masked_fill(other & (components < len(self.weights))[:, None], -math.inf)
        gain = alpha[:, None, None] * self.variances.to(x_t.device) / total  # of E[x_0 | x_t, k], along the axes
        means = self.means.to(x_t.device) + torch.einsum("kij,bkj->bki", axes, gain * rotated)
        return log_joint.softmax(1), means, total

    def measured(self, matrix: Tensor, y: Tensor, noise: float) -> GaussianMixture:
        """The distribution of ``x_0`` given ``y = A x_0 + noise z`` for white z, a mixture again, by Bayes' rule.

        Args:
            matrix: A, ``[m, d]``.
            y: ``[m]``.
            noise: positive.
        """
        matrix = matrix.double()
        seen = matrix @ self.covariances  # A S_k, [K, m, d]
        total = seen @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
        residual = y.double() - self.means @ matrix.T
        root = torch.linalg.cholesky(total)
        half = torch.linalg.solve_triangular(root, seen, upper=False)
        white = torch.linalg.solve_triangular(root, residual[..., None], upper=False)
        means = self.means + (half.mT @ white)[..., 0]
        log_weights = self.weights.log() - (white**2).sum((1, 2)) / 2 - root.diagonal(dim1=1, dim2=2).log().sum(1)
        covariances = self.covariances - half.mT @ half
        tiny = torch.finfo(torch.float64).tiny  # of a component that y excludes
        weights = log_weights.softmax(0).clamp(min=tiny)
        return GaussianMixture(means, (covariances + covariances.mT) / 2, weights)

    def log_density(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``log q(x_t)`` in nats, ``[B]``; the arguments are as in `posterior`."""
        _, rotated, total = self._rotate(x_t, alpha.double().expand(len(x_t)), sigma.double().expand(len(x_t)))
        return self._log_joint(rotated, total).logsumexp(1)

    def score(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``grad log q(x_t) = -(x_t - alpha E[x_0|x_t]) / sigma^2``, ``[B, d]`` (Tweedie); ``sigma > 0``."""
        mean = self.posterior_mean(x_t, alpha, sigma)
        alpha, sigma = alpha.double().expand(len(x_t))[:, None], sigma.double().expand(len(x_t))[:, None]
        return -(x_t - alpha * mean) / sigma**2

    def _rotate(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Axes ``[K, d, d]``; ``x_t - alpha mu_k`` and the eigenvalues of A_k along them, each ``[B, K, d]``."""
        axes = self.axes.to(x_t.device)
        centred = x_t.double()[:, None] - alpha[:, None, None] * self.means.to(x_t.device)
        total = alpha[:, None, None] ** 2 * self.variances.to(x_t.device) + sigma[:, None, None] ** 2
        return axes, torch.einsum("kij,bki->bkj", axes, centred), total

    def _log_joint(self, rotated: Tensor, total: Tensor) -> Tensor:
        """``log w_k + log N(x_t; alpha mu_k, A_k)``, ``[B, K]``, from `_rotate`."""
        exponent = (rotated**2 / total + total.log()).sum(2) + self.dim * math.log(2 * math.pi)
        return self.weights.log().to(rotated.device) - exponent / 2


class OracleNetwork(nn.Module):
    """The exact conditional mean ``E[f|x_t]`` of the noise or another target for a mixture; needs no training.

    The features it provides for heads are fixed random Fourier features of x_t and of the log signal-to-noise ratio
    (Rahimi and Recht 2007).

    Args:
        data_shape: ``(d,)``.
        mixture: the distribution of the data.
        schedule: the denoiser's schedule.
        time_offset: the denoiser's time offset.
        num_classes: the number of components, to treat each component as a class; None for an unconditional network.
        parameterization: the denoiser's parameterization.
        num_features: the number of features.
    Raises:
        ValueError: if the data are not vectors of the mixture's dimension, or ``num_classes`` is not the number of
            components.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        mixture: GaussianMixture,
        schedule: NoiseSchedule,
        time_offset: int = 0,
        num_classes: int | None = None,
        parameterization: Parameterization | None = None,
        num_features: int = 256,
    ) -> None:
        super().__init__()
        if tuple(data_shape) != (mixture.dim,):
            raise ValueError(
                f"data must have shape ({mixture.dim},) for model=oracle (got {tuple(data_shape)}): set model=mlp"
            )
        if num_classes not in (None, len(mixture.weights)):
            raise ValueError(
                f"classes must be the {len(mixture.weights)} components for model=oracle (got {num_classes}): "
                "use the components as classes, or set conditional=false"
            )
        self.data_shape, self.num_classes = (mixture.dim,), num_classes
        self.feature_channels = num_features
        generator = torch.Generator().manual_seed(0)
        self.frequencies: Tensor
        self.phases: Tensor
        frequencies = torch.randn(mixture.dim + 1, self.feature_channels, generator=generator) * 2
        frequencies[-1] *= 0.1  # the log signal-to-noise ratio spans some twenty units, x_t only one or two
        self.register_buffer("frequencies", frequencies, persistent=False)
        phases = 2 * math.pi * torch.rand(self.feature_channels, generator=generator)
        self.register_buffer("phases", phases, persistent=False)
        self.mixture, self.schedule, self.time_offset = mixture, schedule, time_offset
        self.parameterization = parameterization or Eps()

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dtype = x_t.dtype
        level = self.schedule.levels(time.double() / 1000 - self.time_offset / self.schedule.num_steps)
        c_in = self.parameterization.c_in(level)
        x_t = x_t.double() if c_in is None else x_t.double() / per_sample(c_in, x_t.double())
        mean = self.mixture.posterior_mean(x_t, level.alpha, level.sigma, labels)
        eps = (x_t - level.alpha[:, None] * mean) / level.sigma[:, None]
        inputs = torch.cat([x_t.to(dtype), level.log_snr.clamp(min=-40).to(dtype)[:, None]], 1)
        features = torch.cos(inputs @ self.frequencies.to(dtype) + self.phases.to(dtype))
        return self.parameterization.target(mean, eps, level).to(dtype), features
