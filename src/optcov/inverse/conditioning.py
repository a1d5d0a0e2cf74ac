r"""The Gaussian update of ``N(m, C)`` by a linear measurement ``y = A x_0 + n`` with noise ``n ~ N(0, N)``:

    S = A C A^T + N          m' = m + C A^T S^{-1} (y - A m)          C' = C - C A^T S^{-1} A C

N is diagonal.  If the operator selects values (a mask) and ``C = D + U U^T``, there are closed forms:

    keep = N / (D + N) where a value is measured, 1 elsewhere
    C'   = keep D + (keep U) (I + U^T A^T (A D A^T + N)^{-1} A U)^{-1} (keep U)^T

If C is diagonal in a basis Q in which A is diagonal with values g (`Operator.response`; for ``C = c I``, any basis in
which ``A A^T`` has the diagonal p = g^2), S and C' have the diagonals ``p C + N`` and ``C N / (p C + N)`` there.

Draws from other kinds use perturbation (Papandreou and Yuille 2010): for ``z ~ N(0, C)`` and ``n ~ N(0, N)``,
``x = z - C A^T S^{-1} (A z + n)`` has covariance C', at the cost of one solution with S.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance import (
    Basis,
    BasisCovariance,
    CongruentCovariance,
    Covariance,
    DiagonalCovariance,
    FullCovariance,
    IsotropicCovariance,
    LowRankCovariance,
    MatrixFreeCovariance,
    SumCovariance,
)
from optcov.covariance.base import DENSE_LIMIT, Noise, bounding_scale, unit_vectors
from optcov.covariance.total import EXACT_UP_TO, LANCZOS_STEPS, CompositeCovariance
from optcov.inverse.base import Operator
from optcov.inverse.block import gram_in_basis, is_shared, measured_block
from optcov.schedule.levels import per_sample

TOLERANCE = 0.01  # relative residual ||S v - r|| / ||r|| above which a solution is said to be inexact


@dataclass(frozen=True)
class Conditioned:
    """The result of an update.

    Args:
        shift: ``m' - m``, ``[B, *event]``.
        covariance: ``C'``.
        residual: ``||S v - r|| / ||r||`` of the solution v for the innovation r, ``[B]``; 0 where it is exact up to
            rounding.
    """

    shift: Tensor
    covariance: Covariance
    residual: Tensor


def innovation(
    covariance: Covariance, like: Tensor, operator: Operator, variance: Tensor, steps: int = 50
) -> Covariance:
    """``S = A C A^T + N``, the covariance of the measurements.

    It has a closed form if C is diagonal or low-rank and no two rows of the operator use the same value (a mask, block
    averages), and if C is diagonal in a basis of the operator and the noise is the same for all measurements (a blur).
    Otherwise it is dense for up to `optcov.covariance.total.EXACT_UP_TO` measurements.  Beyond that, for a C in a
    basis, the pixels that a mask hides are eliminated (`optcov.inverse.block`), and a C that is the same for all
    samples is dense for up to `optcov.covariance.base.DENSE_LIMIT` measurements, with one factorization.

    For the rest, and for a matrix-free C, S is known only by its products, and `solve` takes ``steps`` steps of
    Lanczos's method, which in exact arithmetic are steps of conjugate gradients.  No tolerance ends them early, because
    each test would wait for a GPU; `Conditioned.residual` says how exact the solution is.

    Args:
        covariance: C.
        like: a tensor with the shape, precision and device of a batch of measurements.
        operator: A.
        variance: the diagonal of N, positive, 0-dimensional or ``[*measurement]``.
        steps: number of products that a solution takes if there is no closed form.
    """
    shape = operator.measurement_shape
    if (known := _spectrum(covariance, operator, variance)) is not None:
        basis, prior, power = known
        return BasisCovariance(basis, power * prior + variance)
    if covariance.is_diagonal or isinstance(covariance, LowRankCovariance):
        white = covariance.variance if isinstance(covariance, LowRankCovariance) else covariance.diagonal()
        own = operator.gram(white)
        if own is not None and isinstance(covariance, LowRankCovariance):
            factor = covariance.factor
            images = operator(factor.flatten(0, 1)).reshape(*factor.shape[:2], *shape)
            return LowRankCovariance.merged(own + variance, images)
        if own is not None:
            return DiagonalCovariance(own + variance)
    if shape.numel() <= EXACT_UP_TO and not is_matrix_free(covariance):
        return _dense(_gram(covariance, like, operator), variance, shape)
    if (inner := _in_basis(covariance)) is not None:
        if (block := measured_block(inner, operator, variance)) is not None:
            return block
        if shape.numel() <= DENSE_LIMIT and not operator.differs and is_shared(inner):
            gram = gram_in_basis(BasisCovariance(inner.basis, inner.variance[:1]), operator)
            one = _dense(gram, variance, shape)
            return FullCovariance(one.matrix.expand(len(like), -1, -1), shape)
    isotropic = variance if variance.ndim == 0 else None

    def product(v: Tensor) -> Tensor:
        image: Tensor = operator(covariance.matvec(operator.adjoint(v)))
        return image if isotropic is not None else image + variance * v

    return MatrixFreeCovariance(product, like, min(steps, shape.numel()), shift=isotropic)


def _gram(covariance: Covariance, like: Tensor, operator: Operator) -> Tensor:
    """``A C A^T``, ``[B, m, m]``, with one transform of A for all samples if they share a basis."""
    inner = _in_basis(covariance)
    if inner is None or inner.basis.differs:
        units = unit_vectors(like)
        return torch.stack([operator(covariance.matvec(operator.adjoint(unit))).flatten(1) for unit in units], 1)
    return gram_in_basis(inner, operator)


def _dense(gram: Tensor, variance: Tensor, shape: torch.Size) -> FullCovariance:
    """``gram + N`` for a gram matrix that is symmetric up to rounding, ``[B, m, m]``."""
    gram = gram.double()
    return FullCovariance((gram + gram.mT) / 2 + variance.double().expand(shape).flatten().diag(), shape)


def _in_basis(covariance: Covariance) -> BasisCovariance | None:
    """A covariance in a basis, also where a bound changed nothing; None for another."""
    if isinstance(covariance, CongruentCovariance) and isinstance(covariance.inner, BasisCovariance):
        return covariance.inner if covariance.is_plain else None
    return covariance if isinstance(covariance, BasisCovariance) else None


def _spectrum(covariance: Covariance, operator: Operator, variance: Tensor) -> tuple[Basis, Tensor, Tensor] | None:
    """A basis of measurements in which ``A C A^T`` is diagonal, with C's variances and the powers p; None if unknown.

    The product of the two, each ``[B, *measurement]`` or broadcasting to it, is that diagonal.
    """
    if variance.ndim > 0:
        return None
    if isinstance(covariance, IsotropicCovariance):
        found = operator.gram_in_basis()
        if found is None:
            return None
        white = covariance.variance.reshape(-1, *(1 for _ in operator.measurement_shape))
        return found[0], white, found[1].to(white)
    inner = _in_basis(covariance)
    gain = None if inner is None else operator.response(inner.basis)
    if inner is None or gain is None:
        return None
    return inner.basis, inner.variance, gain.to(inner.variance) ** 2


def condition(
    covariance: Covariance, residual: Tensor, operator: Operator, variance: Tensor, steps: int = 50
) -> Conditioned:
    """Compute the Gaussian update in this module's docstring.

    Args:
        covariance: C, one per sample of a batch.
        residual: ``y - A m``, ``[B, *measurement]``.
        operator, variance, steps: as in `innovation`.
    """
    variance = variance.to(residual)
    total = innovation(covariance, residual, operator, variance, steps)
    if isinstance(total, MatrixFreeCovariance):
        solved, left = total.solve_within(residual)
    else:
        solved, left = _solved(total, residual), residual.new_zeros(len(residual), dtype=torch.float64)
    shift = covariance.matvec(operator.adjoint(solved))
    return Conditioned(shift, _conditioned(covariance, residual, operator, variance, total), left)


def _conditioned(
    covariance: Covariance, like: Tensor, operator: Operator, variance: Tensor, total: Covariance
) -> Covariance:
    """C', in closed form if there is one."""
    if operator.is_normal and (known := _spectrum(covariance, operator, variance)) is not None:
        basis, prior, power = known
        return BasisCovariance(basis, prior * variance / (power * prior + variance))
    if operator.selects and covariance.is_diagonal:
        white = covariance.diagonal()
        return DiagonalCovariance(_kept(white, operator, variance) * white)
    if operator.selects and isinstance(covariance, LowRankCovariance):
        white = covariance.variance
        kept = _kept(white, operator, variance)
        measured = operator(covariance.factor.flatten(0, 1)).reshape(*covariance.factor.shape[:2], -1).double()
        capacitance = (measured / (operator(white) + variance).double()[:, None]) @ measured.mT
        root = torch.linalg.cholesky_ex(capacitance + torch.eye(covariance.rank).to(capacitance))[0]
        factor = torch.linalg.solve_triangular(root, covariance.factor.flatten(2).double(), upper=False)
        factor = factor.to(white.dtype).reshape(covariance.factor.shape)
        return LowRankCovariance(kept * white, kept[:, None] * factor)
    if isinstance(covariance, FullCovariance) and isinstance(total, FullCovariance):
        seen = operator.matrix(covariance.matrix) @ covariance.matrix  # A C, [B, m, d]
        root = torch.linalg.cholesky_ex(total.matrix)[0].to(seen.dtype)
        half = torch.linalg.solve_triangular(root, seen, upper=False)
        return FullCovariance(covariance.matrix - half.mT @ half, covariance.event_shape)
    return ConditionedCovariance(covariance, like, operator, variance, total)


def _kept(white: Tensor, operator: Operator, variance: Tensor) -> Tensor:
    """``N / (D + N)`` where a value is measured, 1 elsewhere, ``[B, *event]``; computed without cancellation."""
    own = operator(white)
    seen = operator.adjoint(torch.ones_like(own)) > 0
    return torch.where(seen, operator.adjoint(variance / (own + variance)).to(white.dtype), 1.0)


class ConditionedCovariance(CompositeCovariance):
    """``C' = scale (C - C A^T S^{-1} A C)``, computed by the operations of C and S.

    A draw takes a draw from C, a draw from N and one solution with S.  Operations that need the whole matrix (`solve`,
    `logdet` and the like) form it up to `optcov.covariance.total.EXACT_UP_TO` dimensions and use Lanczos's method
    beyond that.  `diagonal` takes two products with C for each measurement.

    Args:
        prior: C.
        like: a tensor with the shape, precision and device of a batch of measurements.
        operator: A.
        variance: the diagonal of N, 0-dimensional or ``[*measurement]``.
        total: S, from `innovation`.
        scale: positive, 0-dimensional or ``[B]``; None for 1.
    """

    def __init__(
        self,
        prior: Covariance,
        like: Tensor,
        operator: Operator,
        variance: Tensor,
        total: Covariance,
        scale: Tensor | None = None,
    ) -> None:
        self.prior, self.like, self.operator = prior, like, operator
        self.variance, self.total = variance, total
        self.scale = torch.ones((), dtype=torch.float64, device=variance.device) if scale is None else scale

    @property
    def shape(self) -> torch.Size:
        return self.prior.shape

    def affine(self, scale: Tensor, shift: Tensor) -> SumCovariance:
        scaled = ConditionedCovariance(
            self.prior, self.like, self.operator, self.variance, self.total, scale * self.scale
        )
        white = shift.to(self.like.dtype).expand(self.shape[0])
        return SumCovariance([scaled, IsotropicCovariance(white, self.shape[1:])])

    def bounded(self, high: float | Tensor | None) -> Covariance:
        return self if high is None else self.congruence(bounding_scale(self.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        z = self.prior.draw(noise)
        n = self.variance.sqrt().to(z.dtype) * noise.draw(tuple(self.operator.measurement_shape)).to(z.dtype)
        return per_sample(self.scale.sqrt(), z) * (z - self._gain(self.operator(z) + n))

    def diagonal(self) -> Tensor:
        variance = self.prior.diagonal()
        for unit in unit_vectors(self.like):
            variance = variance - self.prior.matvec(self.operator.adjoint(unit)) * self._gain(unit)
        return per_sample(self.scale, variance) * variance

    def matvec(self, v: Tensor) -> Tensor:
        seen = self.prior.matvec(v)
        return per_sample(self.scale, v) * (seen - self._gain(self.operator(seen)))

    def _gain(self, v: Tensor) -> Tensor:
        """``C A^T S^{-1} v``, ``[B, *event]``."""
        return self.prior.matvec(self.operator.adjoint(_solved(self.total, v)))

    @cached_property
    def _whole(self) -> Covariance:
        if self.dim <= EXACT_UP_TO:
            return FullCovariance.of(self)
        return MatrixFreeCovariance(self.matvec, self.like.new_zeros(self.shape), min(LANCZOS_STEPS, self.dim))


def is_matrix_free(covariance: Covariance) -> bool:
    """Whether a product with the covariance may call a network."""
    if isinstance(covariance, SumCovariance):
        return any(is_matrix_free(term) for term in covariance.terms)
    if isinstance(covariance, CongruentCovariance):
        return is_matrix_free(covariance.inner)
    return isinstance(covariance, MatrixFreeCovariance)


def _solved(total: Covariance, v: Tensor) -> Tensor:
    """``S^{-1} v``, in float64 if S is dense, because S is ill-conditioned when the noise is small."""
    return total.solve(v.double()).to(v.dtype) if isinstance(total, FullCovariance) else total.solve(v)
