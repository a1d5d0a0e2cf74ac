"""Dense matrices: the reference for all other kinds, and the kind for the oracle and for small images."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, bounding_scale, check_dense
from optcov.schedule.levels import per_sample


class FullCovariance(Covariance):
    """``C`` as a dense matrix.

    Args:
        matrix: symmetric ``[B, d, d]``; `bounded` projects an indefinite estimate onto the positive semi-definite
            matrices.  One matrix that is expanded over the batch (`Tensor.expand`) is factored once for all samples.
        event_shape: shape of one sample, with d = prod(event_shape) dimensions.
    Raises:
        ValueError: if the shapes do not fit together, or d is above `optcov.covariance.base.DENSE_LIMIT`.
    """

    def __init__(self, matrix: Tensor, event_shape: torch.Size | tuple[int, ...]) -> None:
        self.matrix = matrix
        self.event_shape = torch.Size(event_shape)
        d = self.event_shape.numel()
        check_dense(d)
        if matrix.ndim != 3 or matrix.shape[1:] != (d, d):
            raise ValueError(f"matrix must have shape [B, {d}, {d}] (got {tuple(matrix.shape)}): flatten the events")

    @classmethod
    def of(cls, covariance: Covariance) -> FullCovariance:
        """Convert a covariance of any kind to a dense matrix."""
        return cls(covariance.dense(), covariance.shape[1:])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.matrix), *self.event_shape))

    def affine(self, scale: Tensor, shift: Tensor) -> FullCovariance:
        identity = torch.eye(self.dim, dtype=self.matrix.dtype, device=self.matrix.device)
        scaled = per_sample(scale, self.matrix) * self.matrix
        return FullCovariance(scaled + per_sample(shift, self.matrix) * identity, self.event_shape)

    def bounded(self, high: float | Tensor | None) -> FullCovariance:
        values, vectors = torch.linalg.eigh(self.matrix)
        positive = FullCovariance((vectors * values.clamp(min=0)[:, None]) @ vectors.mT, self.event_shape)
        return positive if high is None else positive.congruence(bounding_scale(positive.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        # the root is taken from eigenvalues, because a Cholesky factorization fails for a singular matrix
        z = noise.draw()
        values, vectors = torch.linalg.eigh(self.matrix)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
        return (root.to(z.dtype) @ z.flatten(1)[..., None]).reshape(z.shape)

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=1, dim2=2).reshape(self.shape)

    def matvec(self, v: Tensor) -> Tensor:
        return (self.matrix.to(v.dtype) @ v.flatten(1)[..., None]).reshape(v.shape)

    def solve(self, v: Tensor) -> Tensor:
        if self._shared_factors is not None:
            columns: Tensor = torch.linalg.lu_solve(*self._shared_factors, v.flatten(1).double().T)
            return columns.T.reshape(v.shape).to(v.dtype)
        solved: Tensor = torch.linalg.solve_ex(self.matrix.to(v.dtype), v.flatten(1)[..., None])[0]
        return solved.reshape(v.shape)

    def logdet(self) -> Tensor:
        logdet: Tensor = torch.linalg.slogdet(self.matrix).logabsdet
        return logdet

    def congruence(self, scale: Tensor) -> FullCovariance:
        scale = scale.flatten(1).to(self.matrix.dtype)
        return FullCovariance(scale[:, :, None] * self.matrix * scale[:, None], self.event_shape)

    def indefiniteness(self) -> Tensor:
        """How far `bounded` moves an estimate to make it positive semi-definite: ``||C_-||_F / ||C||_F``, ``[B]``."""
        values = torch.linalg.eigvalsh(self.matrix)
        moved: Tensor = values.clamp(max=0).norm(dim=1) / values.norm(dim=1)
        return moved

    def lerp(self, other: Covariance, weight: float) -> FullCovariance:
        return FullCovariance(torch.lerp(self.matrix, other.dense().to(self.matrix.dtype), weight), self.event_shape)

    def inv_trace(self) -> Tensor:
        inverse: Tensor = torch.linalg.inv_ex(self.matrix)[0]
        return inverse.diagonal(dim1=1, dim2=2).sum(1)

    def dense(self) -> Tensor:
        return self.matrix

    @cached_property
    def _shared_factors(self) -> tuple[Tensor, Tensor] | None:
        """The LU factors in float64 of the matrix of all samples; None if each has its own."""
        if len(self.matrix) == 1 or self.matrix.stride(0) != 0:
            return None
        factors, pivots, _ = torch.linalg.lu_factor_ex(self.matrix[0].double())
        return factors, pivots
