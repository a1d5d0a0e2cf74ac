"""Mean and covariance of features, of which there may be more than fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running mean and covariance of features ``[d]``, summed in float64 where the features are.

    Up to d features are kept as they are, more as their sum and outer product: never more than ``d^2`` numbers.
    """

    def __init__(self) -> None:
        self.count = self.dim = 0
        self._rows: list[Tensor] = []
        self._sum = self._outer = torch.zeros((), dtype=torch.float64)

    @property
    def rows(self) -> Tensor | None:
        """The features ``[n, d]`` themselves, in float64, of no more than d; None of more or none at all."""
        return torch.cat(self._rows).double() if self._rows else None

    def update(self, features: Tensor) -> None:
        """Add features ``[B, d]``."""
        self.count += len(features)
        self.dim = features.shape[1]
        self._rows.append(features)
        if self.count > self.dim:
            for rows in (each.double() for each in self._rows):
                self._sum = self._sum + rows.sum(0)
                self._outer = self._outer + rows.T @ rows
            self._rows = []

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """``[d]`` and the unbiased ``[d, d]``.

        Raises:
            ValueError: if fewer than two features were added, or one that is not finite.
        """
        self._refuse_without_covariance()
        if self.rows is not None:
            mean, root = self.mean_and_root()
            return mean, root.T @ root
        mean = self._sum / self.count
        return mean, (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def mean_and_root(self) -> tuple[Tensor, Tensor]:
        """``[d]`` and ``[r, d]`` with ``root^T root`` the covariance, r at most the number of features.

        Raises:
            ValueError: if fewer than two features were added, or one that is not finite.
        """
        self._refuse_without_covariance()
        rows = self.rows
        if rows is None:
            mean, covariance = self.mean_and_covariance()
            return mean, covariance_root(covariance)
        mean = rows.mean(0)
        return mean, (rows - mean) / (self.count - 1) ** 0.5

    def _refuse_without_covariance(self) -> None:
        if self.count < 2:
            raise ValueError(f"num_samples = {self.count} has no covariance: give at least 2")
        if not all(tensor.isfinite().all() for tensor in (*self._rows, self._sum)):
            raise ValueError(f"the features of {self.count} images are not all finite: look at the images")


def covariance_root(covariance: Tensor) -> Tensor:
    """``[r, d]`` with ``root^T root = S`` for a positive semi-definite S ``[d, d]``, r its rank up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    held = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors[:, held] * values[held].sqrt()
    return root.T
