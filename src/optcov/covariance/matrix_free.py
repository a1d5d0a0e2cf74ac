"""A covariance that is known only by its products, such as the Jacobian of a mean network."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from optcov.covariance.base import Covariance, Noise, bounding_scale, check_dense, unit_vectors
from optcov.covariance.lanczos import Krylov, Product, lanczos
from optcov.schedule.levels import per_sample

EXACT_DIAGONAL = 256  # largest d for which a diagonal is computed exactly, by d products


class Quadrature:
    """The Krylov spaces of probe vectors, computed once for the traces of all functions of a matrix.

    Args:
        product, steps: as in `lanczos`.
        like: a tensor with the shape, precision and device of the vectors.
        count: number of probes, which are random signs with a fixed seed; if it is at least d, the d unit vectors are
            used instead and the traces are exact.
    """

    def __init__(self, product: Product, steps: int, like: Tensor, count: int) -> None:
        self.product, self.steps, self.like, self.count = product, steps, like, count

    @property
    def is_exact(self) -> bool:
        """Whether the probes form a complete basis."""
        return self.count >= self.like[0].numel()

    @cached_property
    def spaces(self) -> list[Krylov]:
        """The Krylov space of each probe."""
        return [lanczos(self.product, probe, self.steps) for probe in self.probes()]

    def probes(self) -> list[Tensor]:
        """The probes, each ``[B, *event]`` and the same for all samples; their expected covariance is the identity."""
        like, dim = self.like, self.like[0].numel()
        if self.is_exact:
            return list(unit_vectors(like))
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (self.count, dim), generator=generator) * 2 - 1
        rows = signs.to(like.device, like.dtype)
        return [row.reshape(like.shape[1:]).expand(like.shape) for row in rows]


class MatrixFreeCovariance(Covariance):
    """``C = scale * A + shift * I`` for A given as ``v -> A v``.

    `draw`, `solve` and `inv_quad` take k products and are exact for ``k = d``.  `logdet` and `inv_trace` are estimated
    by quadrature with random probes, which takes ``probes * k`` products and has a standard error
    (`log_determinant`).  All of these treat negative eigenvalues of A as 0; `matvec` is one product with A unchanged.

    Args:
        product: ``A v`` for ``v`` of shape ``[B, *event]``.
        like: a tensor with the shape, precision and device of a batch of events.
        steps: k, at least 1 and at most d.
        variance: the diagonal of A, ``[B, *event]``, if it is known.  If it is None, `diagonal` makes d products (up to
            `EXACT_DIAGONAL` dimensions) or estimates it from the probes.
        probes: number of probes for traces of functions, at least 2.
        scale, shift: 0-dimensional or ``[B]``; None for 1 and 0.
    Raises:
        ValueError: if k is below 1 or above d, or there are fewer than 2 probes.
    """

    def __init__(
        self,
        product: Product,
        like: Tensor,
        steps: int,
        variance: Tensor | None = None,
        probes: int = 16,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        if not 1 <= steps <= like[0].numel():
            raise ValueError(
                f"steps must be at least 1 and at most the dimension {like[0].numel()} (got {steps}): give a number "
                "such as 3"
            )
        if probes < 2:
            raise ValueError(f"probes must be at least 2 (got {probes}): a standard error needs two")
        self.product, self.like, self.steps, self.variance = product, like, steps, variance
        one = torch.ones((), dtype=torch.float64, device=like.device)
        self.scale = one if scale is None else scale
        self.shift = 0 * one if shift is None else shift
        self.quadrature = Quadrature(product, steps, like, probes)

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    def affine(self, scale: Tensor, shift: Tensor) -> MatrixFreeCovariance:
        result = MatrixFreeCovariance(
            self.product,
            self.like,
            self.steps,
            self.variance,
            self.quadrature.count,
            scale * self.scale,
            scale * self.shift + shift,
        )
        result.quadrature = self.quadrature  # belongs to A, so it does not depend on the scale
        return result

    def bounded(self, high: float | Tensor | None) -> MatrixFreeCovariance:
        """Limit the diagonal entries as in `Covariance.bounded` if they are known.

        Otherwise only their mean is limited, which one product with random signs estimates.
        """
        if high is None:
            return self
        if self.variance is not None:
            return self.congruence(bounding_scale(self.diagonal(), high))
        probe = Quadrature(self.product, 1, self.like, 1).probes()[0]
        mean = (probe * self.matvec(probe)).flatten(1).mean(1)
        scale = bounding_scale(mean, high).double()
        return self.affine(scale**2, torch.zeros_like(scale))

    def draw(self, noise: Noise) -> Tensor:
        z = noise.draw()
        return (
            self._krylov(z.to(self.like.dtype)).apply(lambda nodes: self._values(nodes).sqrt()).to(z).reshape(z.shape)
        )

    def diagonal(self) -> Tensor:
        variance = self.variance
        if variance is None:
            exact = self.dim <= EXACT_DIAGONAL
            probes = Quadrature(self.product, 1, self.like, self.dim if exact else self.quadrature.count).probes()
            total = torch.stack([probe * self.product(probe) for probe in probes])
            variance = total.sum(0) if exact else total.mean(0)
        return per_sample(self.scale, variance) * variance + per_sample(self.shift, variance)

    def matvec(self, v: Tensor) -> Tensor:
        return per_sample(self.scale, v) * self.product(v) + per_sample(self.shift, v) * v

    def solve(self, v: Tensor) -> Tensor:
        return self.solve_within(v)[0]

    def solve_within(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """``C^{-1} v`` after k products, and its relative residual ``||v - C solution|| / ||v||``, float64 ``[B]``."""
        space = self._krylov(v)
        solution = space.apply(lambda nodes: 1 / self._values(nodes)).reshape(v.shape)
        scale = self.scale.double().reshape(-1)
        return solution, scale * space.left_over(lambda nodes: 1 / self._values(nodes))

    def logdet(self) -> Tensor:
        return self.log_determinant()[0]

    def log_determinant(self) -> tuple[Tensor, Tensor]:
        """``log det C`` and its standard error over the probes, each float64 ``[B]``; 0 for a full basis."""
        return self._trace(torch.log)

    def lerp(self, other: Covariance, weight: float) -> MatrixFreeCovariance:
        variance = None
        if not isinstance(other, MatrixFreeCovariance) or other.variance is not None:
            variance = None if self.variance is None else torch.lerp(self.diagonal(), other.diagonal(), weight)
        return MatrixFreeCovariance(
            lambda v: torch.lerp(self.matvec(v), other.matvec(v), weight),
            self.like,
            self.steps,
            variance,
            self.quadrature.count,
        )

    def congruence(self, scale: Tensor) -> MatrixFreeCovariance:
        variance = None if self.variance is None else scale**2 * self.diagonal()
        return MatrixFreeCovariance(
            lambda v: scale * self.matvec(scale * v), self.like, self.steps, variance, self.quadrature.count
        )

    def inv_quad(self, v: Tensor) -> Tensor:
        return self._krylov(v).quadratic(lambda nodes: 1 / self._values(nodes)).to(v.dtype)

    def inv_trace(self) -> Tensor:
        return self._trace(torch.reciprocal)[0]

    def dense(self) -> Tensor:
        check_dense(self.dim)
        unit = Quadrature(self.product, 1, self.like, self.dim).probes()
        return torch.stack([self.matvec(row).flatten(1) for row in unit], dim=-1)

    def _krylov(self, v: Tensor) -> Krylov:
        return lanczos(self.product, v, self.steps)

    def _values(self, nodes: Tensor) -> Tensor:
        """Eigenvalues of C from those of A; eigenvalues of A that equal 0 up to rounding count as 0."""
        scale, shift = (value.double().reshape(-1, 1) for value in (self.scale, self.shift))
        rounding = 10 * torch.finfo(self.like.dtype).eps * nodes.amax(-1, keepdim=True)
        return (scale * torch.where(nodes > rounding, nodes, 0.0) + shift).clamp(min=0)

    def _trace(self, function: Product) -> tuple[Tensor, Tensor]:
        """``tr f(C)`` and its standard error."""
        values = torch.stack(
            [space.quadratic(lambda nodes: function(self._values(nodes))) for space in self.quadrature.spaces]
        )
        if self.quadrature.is_exact:
            return values.sum(0), torch.zeros_like(values[0])
        return values.mean(0), values.std(0) / len(values) ** 0.5
