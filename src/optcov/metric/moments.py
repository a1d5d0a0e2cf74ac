"""Mean and covariance of features that need not fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running mean and covariance of features ``[d]``, summed in float64 on the device of the features.

    Up to d rows are stored as they are; beyond that, only their sum and the sum of their outer products are stored.
    Memory never exceeds about ``d^2`` numbers.
    """

    def __init__(self) -> None:
        self.count = self.dim = 0
        self._rows: list[Tensor] = []
        self._sum = self._outer = torch.zeros((), dtype=torch.float64)

    @property
    def rows(self) -> Tensor | None:
        """The features ``[n, d]``, float64, while n is at most d; None if there are more rows, or none."""
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
        """Mean ``[d]`` and unbiased covariance ``[d, d]``.

        Raises:
            ValueError: if fewer than two rows were added, or one that is not finite.
        """
        self._refuse_without_covariance()
        if self.rows is not None:
            mean, root = self.mean_and_root()
            return mean, root.T @ root
        mean = self._sum / self.count
        return mean, (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def mean_and_root(self) -> tuple[Tensor, Tensor]:
        """Mean ``[d]`` and a root ``[r, d]`` of the covariance, ``root^T root``; r is at most the number of rows.

        Raises:
            ValueError: if fewer than two rows were added, or one that is not finite.
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
            raise ValueError(f"num_samples must be at least 2 (got {self.count}): a covariance needs two images")
        if not all(tensor.isfinite().all() for tensor in (*self._rows, self._sum)):
            raise ValueError(f"features of {self.count} images are not all finite: look at the images")


def covariance_root(covariance: Tensor) -> Tensor:
    """A root ``[r, d]`` with ``root^T root = S`` of a positive semi-definite S ``[d, d]``; r is its numerical rank."""
    values, vectors = torch.linalg.eigh(covariance)
    held = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors[:, held] * values[held].sqrt()
    return root.T
