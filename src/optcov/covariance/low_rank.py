r"""A diagonal plus a few directions: ``C = D + U U^T``, where U has r columns.

Solutions and determinants use the r x r capacitance matrix ``M = I + U^T D^{-1} U``:

    C^{-1} = D^{-1} - D^{-1} U M^{-1} U^T D^{-1}                  (Sherman, Morrison and Woodbury)
    log det C = log det D + log det M                              (the matrix determinant lemma)
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, bounding_scale
from optcov.covariance.full import FullCovariance
from optcov.schedule.levels import per_sample


class LowRankCovariance(Covariance):
    """``C = diag(variance) + sum_i factor_i factor_i^T``.

    A draw takes d + r numbers.  If a variance is 0, the capacitance matrix does not exist, and `solve`, `logdet` and
    `inv_trace` form the dense matrix instead.

    Args:
        variance: ``[B, *event]``; `bounded` raises negative entries to 0 and leaves U U^T unchanged.
        factor: the r columns of U, ``[B, r, *event]``, r at most d.
    Raises:
        ValueError: if the shapes do not fit together, or r is above d.
    """

    def __init__(self, variance: Tensor, factor: Tensor) -> None:
        if factor.ndim != variance.ndim + 1 or (factor.shape[0], *factor.shape[2:]) != tuple(variance.shape):
            event = tuple(variance.shape[1:])
            raise ValueError(
                f"factor must have shape [B, rank, *event] for the event {event} (got {tuple(factor.shape)}): give "
                "directions of the variance's own shape"
            )
        if factor.shape[1] > variance.shape[1:].numel():
            raise ValueError(
                f"rank must be at most the dimension {variance.shape[1:].numel()} (got {factor.shape[1]}): lower it, "
                "or use a full covariance"
            )
        self.variance, self.factor = variance, factor

    @classmethod
    def merged(cls, variance: Tensor, factor: Tensor) -> LowRankCovariance:
        """Make one from any number of directions; more than d are replaced by d with the same ``U U^T``."""
        if factor.shape[1] > variance.shape[1:].numel():
            triangle: Tensor = torch.linalg.qr(factor.flatten(2), mode="r").R  # R^T R = U U^T
            factor = triangle.reshape(len(variance), -1, *variance.shape[1:])
        return cls(variance, factor)

    @property
    def shape(self) -> torch.Size:
        return self.variance.shape

    @property
    def rank(self) -> int:
        """r, the number of directions."""
        return self.factor.shape[1]

    def affine(self, scale: Tensor, shift: Tensor) -> LowRankCovariance:
        v, factor = self.variance, self.factor
        return LowRankCovariance(
            per_sample(scale, v) * v + per_sample(shift, v), per_sample(scale.sqrt(), factor) * factor
        )

    def bounded(self, high: float | Tensor | None) -> LowRankCovariance:
        positive = LowRankCovariance(self.variance.clamp(min=0), self.factor)
        return positive if high is None else positive.congruence(bounding_scale(positive.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        z, w = noise.draw(), noise.draw((self.rank,))
        return self.variance.sqrt() * z + self._along(w)

    def diagonal(self) -> Tensor:
        return self.variance + (self.factor**2).sum(1)

    def matvec(self, v: Tensor) -> Tensor:
        return self.variance * v + self._along(self._onto(v))

    def solve(self, v: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense.solve(v)
        scaled = v / self.variance
        inner = torch.cholesky_solve(self._onto(scaled).to(self._root.dtype)[..., None], self._root)[..., 0]
        return scaled - self._along(inner.to(v.dtype)) / self.variance

    def logdet(self) -> Tensor:
        if self._dense is not None:
            return self._dense.logdet()
        capacitance = 2 * self._root.diagonal(dim1=1, dim2=2).log().sum(1)
        return self.variance.log().flatten(1).sum(1) + capacitance.to(self.variance.dtype)

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        from optcov.covariance.total import mix

        return mix(self, other, weight)

    def congruence(self, scale: Tensor) -> LowRankCovariance:
        return LowRankCovariance(scale**2 * self.variance, scale[:, None] * self.factor)

    def inv_trace(self) -> Tensor:
        if self._dense is not None:
            return self._dense.inv_trace()
        scaled = (self.factor / self.variance[:, None]).flatten(2).to(self._root.dtype)
        removed = torch.cholesky_solve(scaled, self._root).mul(scaled).sum((1, 2))
        return (1 / self.variance).flatten(1).sum(1) - removed.to(self.variance.dtype)

    def dense(self) -> Tensor:
        factor = self.factor.flatten(2)
        return self.variance.flatten(1).diag_embed() + factor.mT @ factor

    @cached_property
    def _dense(self) -> FullCovariance | None:
        return None if bool((self.variance > 0).all()) else FullCovariance(self.dense(), self.shape[1:])

    @cached_property
    def _root(self) -> Tensor:
        """The Cholesky factor of the capacitance matrix, float64 ``[B, r, r]``."""
        scaled = (self.factor / self.variance.sqrt()[:, None]).flatten(2).double()
        eye = torch.eye(self.rank, dtype=torch.float64, device=scaled.device)
        root: Tensor = torch.linalg.cholesky_ex(eye + scaled @ scaled.mT)[0]
        return root

    def _onto(self, v: Tensor) -> Tensor:
        """``U^T v``, ``[B, r]``."""
        return (self.factor.flatten(2) @ v.flatten(1)[..., None])[..., 0]

    def _along(self, w: Tensor) -> Tensor:
        """``U w`` for ``w`` of shape ``[B, r]``."""
        return (w[:, None] @ self.factor.flatten(2)).reshape(self.shape)
