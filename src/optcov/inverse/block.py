r"""The block at measured pixels of a covariance in a basis, whose solutions eliminate the hidden pixels.

For a mask A with the complement H, noise of the same variance N everywhere, and ``M = C + N I = Q diag(c + N) Q^T``,
the covariance of the measurements is a block of M, and ``W = M^{-1}`` has a closed form.  With ``x = A^T r``,

    A C A^T + N I = A M A^T          (A M A^T)^{-1} r = A W (x - H^T (H W H^T)^{-1} H W x)

(the inverse of a block by the Schur complement): one factorization with as many rows as pixels are hidden, and two
products with W for each solution, instead of a system with as many rows as pixels are measured.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance import BasisCovariance, Covariance, FullCovariance
from optcov.covariance.base import DENSE_LIMIT, Noise, bounding_scale
from optcov.covariance.total import EXACT_UP_TO, CompositeCovariance
from optcov.inverse.base import Operator
from optcov.inverse.operator import Mask


class MeasuredBlock(CompositeCovariance):
    """``A M A^T`` for a mask A and M in a basis whose vectors all samples share.

    Args:
        whole_events: M, with positive variances.
        operator: A.
        shared: whether M is the same for all samples, which then share a factorization.
    """

    def __init__(self, whole_events: BasisCovariance, operator: Mask, shared: bool) -> None:
        self.whole_events, self.operator, self.shared = whole_events, operator, shared
        self.hidden = operator.complement()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.whole_events.variance), *self.operator.measurement_shape))

    def affine(self, scale: Tensor, shift: Tensor) -> MeasuredBlock:
        return MeasuredBlock(self.whole_events.affine(scale, shift), self.operator, self.shared)

    def bounded(self, high: float | Tensor | None) -> Covariance:
        return self if high is None else self.congruence(bounding_scale(self.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        whole = self.whole_events
        z = noise.draw(tuple(whole.shape[1:]))
        drawn: Tensor = self.operator(whole.basis.synthesise(whole.variance.sqrt() * z))
        return drawn

    def diagonal(self) -> Tensor:
        variance: Tensor = self.operator(self.whole_events.diagonal())
        return variance

    def matvec(self, v: Tensor) -> Tensor:
        image: Tensor = self.operator(self.whole_events.matvec(self.operator.adjoint(v)))
        return image

    def solve(self, v: Tensor) -> Tensor:
        x = self.operator.adjoint(v.double())
        inverse = BasisCovariance(self.whole_events.basis, 1 / self.whole_events.variance.double())  # W
        at_hidden = self.hidden(inverse.matvec(x))
        if self.shared:
            filled = torch.cholesky_solve(at_hidden.T, self._root[0]).T
        else:
            filled = torch.cholesky_solve(at_hidden[..., None], self._root)[..., 0]
        solved: Tensor = self.operator(inverse.matvec(x - self.hidden.adjoint(filled)))
        return solved.to(v.dtype)

    @cached_property
    def _root(self) -> Tensor:
        """The Cholesky factor of ``H W H^T``, float64 ``[B or 1, h, h]``."""
        variance = self.whole_events.variance[:1] if self.shared else self.whole_events.variance
        gram = gram_in_basis(BasisCovariance(self.whole_events.basis, 1 / variance.double()), self.hidden)
        root: Tensor = torch.linalg.cholesky_ex(gram)[0]
        return root

    @cached_property
    def _whole(self) -> Covariance:
        return FullCovariance.of(self)


def measured_block(covariance: BasisCovariance, operator: Operator, variance: Tensor) -> MeasuredBlock | None:
    """``A C A^T + N``, if hidden pixels can be eliminated: they are fewer than those measured, and few enough.

    That is `optcov.covariance.total.EXACT_UP_TO` of them, or `optcov.covariance.base.DENSE_LIMIT` if C is the same for
    all samples.

    Args:
        covariance: C.
        operator: A.
        variance: the diagonal of N, positive, 0-dimensional or ``[*measurement]``.
    """
    if not isinstance(operator, Mask) or variance.ndim > 0 or covariance.basis.differs:
        return None
    hidden = operator.event_shape.numel() - operator.measurement_shape.numel()
    shared = is_shared(covariance)
    if not 0 < hidden <= min(operator.measurement_shape.numel(), DENSE_LIMIT if shared else EXACT_UP_TO):
        return None
    return MeasuredBlock(BasisCovariance(covariance.basis, covariance.variance + variance), operator, shared)


def is_shared(covariance: BasisCovariance) -> bool:
    """Whether C is the same for all samples of a batch."""
    variance = covariance.variance
    return not covariance.basis.differs and bool((variance == variance[:1]).all())


def gram_in_basis(covariance: BasisCovariance, operator: Operator) -> Tensor:
    """``A C A^T``, ``[B, m, m]``, by one transform of A; the basis does not differ between samples."""
    matrix = operator.matrix(covariance.variance)
    seen = covariance.basis.analyse(matrix.reshape(-1, *operator.event_shape)).reshape(matrix.shape)
    return (seen * covariance.variance.flatten(1)[:, None]) @ seen.mT
