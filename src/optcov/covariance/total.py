"""Covariances built from others: sums of different kinds, and a kind scaled pixel by pixel.

Draws and products of a sum are sums of those of its terms.  Operations that need the whole matrix (`solve`, `logdet`
and the like) use a closed form if there is one, the dense matrix up to `EXACT_UP_TO` dimensions, and Lanczos's method
beyond that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, bounding_scale
from optcov.covariance.basis import BasisCovariance
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.covariance.full import FullCovariance
from optcov.covariance.isotropic import IsotropicCovariance
from optcov.covariance.low_rank import LowRankCovariance
from optcov.covariance.matrix_free import MatrixFreeCovariance

EXACT_UP_TO = 512  # dimensions
LANCZOS_STEPS = 64


class CongruentCovariance(Covariance):
    """``S C S`` with ``S = diag(scale)``.

    Args:
        scale: not negative, ``[B, *event]``.
        inner: C.
    """

    def __init__(self, scale: Tensor, inner: Covariance) -> None:
        self.scale, self.inner = scale, inner

    @property
    def shape(self) -> torch.Size:
        return self.scale.shape

    def affine(self, scale: Tensor, shift: Tensor) -> Covariance:
        scaled = CongruentCovariance(self.scale, self.inner.affine(scale, torch.zeros_like(shift)))
        return SumCovariance([scaled, _white(shift, self.scale)])

    def bounded(self, high: float | Tensor | None) -> Covariance:
        positive = CongruentCovariance(self.scale, self.inner.bounded(None))
        return positive if high is None else positive.congruence(bounding_scale(positive.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        return self.scale * self.inner.draw(noise)

    def diagonal(self) -> Tensor:
        return self.scale**2 * self.inner.diagonal()

    def matvec(self, v: Tensor) -> Tensor:
        return self.scale * self.inner.matvec(self.scale * v)

    def solve(self, v: Tensor) -> Tensor:
        return self.inner.solve(v / self.scale) / self.scale

    def logdet(self) -> Tensor:
        return self.inner.logdet() + 2 * self.scale.log().flatten(1).sum(1)

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        return mix(self, other, weight)

    def congruence(self, scale: Tensor) -> CongruentCovariance:
        return CongruentCovariance(scale * self.scale, self.inner)

    def inv_quad(self, v: Tensor) -> Tensor:
        return self.inner.inv_quad(v / self.scale)

    def inv_trace(self) -> Tensor:
        return whole([self]).inv_trace() if self.is_plain else FullCovariance.of(self).inv_trace()

    @cached_property
    def is_plain(self) -> bool:
        """Whether S = I."""
        return bool((self.scale == 1).all())


class CompositeCovariance(Covariance):
    """A covariance given by its parts; `solve`, `logdet` and the like use the same matrix as a single kind."""

    @property
    @abstractmethod
    def _whole(self) -> Covariance:
        """The same matrix as a single kind."""

    def solve(self, v: Tensor) -> Tensor:
        return self._whole.solve(v)

    def logdet(self) -> Tensor:
        return self._whole.logdet()

    def lerp(self, other: Covariance, weight: float) -> Covariance:
        return mix(self, other, weight)

    def inv_quad(self, v: Tensor) -> Tensor:
        return self._whole.inv_quad(v)

    def inv_trace(self) -> Tensor:
        return self._whole.inv_trace()


class SumCovariance(CompositeCovariance):
    """``C = A + B + ...``, for terms whose sum has no kind of its own.

    Args:
        terms: at least one covariance, all of the same shape; each is positive semi-definite, or an estimate that
            `bounded` makes so.
    Raises:
        ValueError: if there is no term, or the shapes differ.
    """

    def __init__(self, terms: Sequence[Covariance]) -> None:
        if not terms or any(term.shape != terms[0].shape for term in terms):
            shapes = ", ".join(str(tuple(term.shape)) for term in terms) or "none"
            raise ValueError(f"terms must be covariances of one shape (got {shapes}): give at least one")
        self.terms = list(terms)

    @property
    def shape(self) -> torch.Size:
        return self.terms[0].shape

    def affine(self, scale: Tensor, shift: Tensor) -> SumCovariance:
        white = next((i for i, term in enumerate(self.terms) if term.is_diagonal), None)
        zero = torch.zeros_like(shift)
        terms = [term.affine(scale, shift if i == white else zero) for i, term in enumerate(self.terms)]
        return SumCovariance(terms if white is not None else [*terms, _white(shift, terms[0].diagonal())])

    def bounded(self, high: float | Tensor | None) -> SumCovariance:
        """As `Covariance.bounded`; negative estimates become 0 in each term separately."""
        positive = SumCovariance([term.bounded(None) for term in self.terms])
        return positive if high is None else positive.congruence(bounding_scale(positive.diagonal(), high))

    def draw(self, noise: Noise) -> Tensor:
        return torch.stack([term.draw(noise) for term in self.terms]).sum(0)

    def diagonal(self) -> Tensor:
        return torch.stack([term.diagonal() for term in self.terms]).sum(0)

    def matvec(self, v: Tensor) -> Tensor:
        return torch.stack([term.matvec(v) for term in self.terms]).sum(0)

    def congruence(self, scale: Tensor) -> SumCovariance:
        return SumCovariance([term.congruence(scale) for term in self.terms])

    @cached_property
    def _whole(self) -> Covariance:
        return whole(self.terms)


def _white(variance: Tensor, like: Tensor) -> IsotropicCovariance:
    return IsotropicCovariance(variance.to(like.dtype).expand(len(like)), like.shape[1:])


def mix(one: Covariance, other: Covariance, weight: float) -> Covariance:
    """``one + weight (other - one)``: a sum for weights in [0, 1], where both terms stay positive, dense otherwise."""
    if isinstance(other, MatrixFreeCovariance):
        return other.lerp(one, 1 - weight)
    if not 0 <= weight <= 1:
        return FullCovariance.of(one).lerp(other, weight)
    like = one.diagonal()
    share = torch.tensor(weight, dtype=torch.float64, device=like.device)
    zero = torch.zeros_like(share)
    terms: list[Covariance] = []
    for part in (one.affine(1 - share, zero), other.affine(share, zero)):
        terms += part.terms if isinstance(part, SumCovariance) else [part]
    terms = merged(terms)
    return terms[0] if len(terms) == 1 else SumCovariance(terms)


def merged(terms: Sequence[Covariance]) -> list[Covariance]:
    """Merge terms that have a joint closed form: diagonals, factors, and spectra in the same basis are added."""
    diagonals = [term for term in terms if term.is_diagonal]
    factors = [term for term in terms if isinstance(term, LowRankCovariance)]
    rest = [term for term in terms if not term.is_diagonal and not isinstance(term, LowRankCovariance)]
    found: list[Covariance] = []
    for term in rest:
        same = next((i for i, each in enumerate(found) if _same_basis(each, term)), None)
        if same is None:
            found.append(term)
        else:
            first = found[same]
            assert isinstance(first, BasisCovariance)
            assert isinstance(term, BasisCovariance)
            found[same] = BasisCovariance(first.basis, first.variance + term.variance)
    isotropic = [term.variance for term in diagonals if isinstance(term, IsotropicCovariance)]
    white = IsotropicCovariance(torch.stack(isotropic).sum(0), terms[0].shape[1:]) if isotropic else None
    own = [term.diagonal() for term in diagonals if not isinstance(term, IsotropicCovariance)]
    if factors:
        variances = [term.variance for term in factors] + own + ([] if white is None else [white.diagonal()])
        factor = torch.cat([term.factor for term in factors], 1)
        return [*found, LowRankCovariance.merged(torch.stack(variances).sum(0), factor)]
    if own:
        variances = own + ([] if white is None else [white.diagonal()])
        return [*found, DiagonalCovariance(torch.stack(variances).sum(0))]
    if white is not None and len(found) == 1 and isinstance(found[0], BasisCovariance | FullCovariance):
        one = torch.ones((), dtype=torch.float64, device=white.variance.device)
        return [found[0].affine(one, white.variance)]
    return found if white is None else [*found, white]


def _same_basis(one: Covariance, other: Covariance) -> bool:
    return isinstance(one, BasisCovariance) and isinstance(other, BasisCovariance) and one.basis.same(other.basis)


def whole(terms: Sequence[Covariance]) -> Covariance:
    """A single covariance equal to the sum, for solutions and determinants."""
    plain = [
        term.inner if isinstance(term, CongruentCovariance) and bool((term.scale == 1).all()) else term
        for term in terms
    ]
    found = merged(plain)
    if len(found) == 1 and not isinstance(found[0], CongruentCovariance):
        return found[0]
    total = SumCovariance(found)
    if total.dim <= EXACT_UP_TO:
        return FullCovariance.of(total)
    variance = total.diagonal()
    return MatrixFreeCovariance(total.matvec, variance, min(LANCZOS_STEPS, total.dim), variance)
