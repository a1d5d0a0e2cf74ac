r"""Functions of a symmetric matrix that is known only by its products, approximated by k steps of Lanczos's method.

Starting from a vector v, k products give an orthonormal ``Q [k, d]`` whose first row is v up to scale, such that
``T = Q A Q^T`` is tridiagonal:

    f(A) v        ~ ||v|| Q^T f(T) e_1
    v^T f(A) v    ~ ||v||^2 e_1^T f(T) e_1 = ||v||^2 sum_j weight_j f(node_j)      (Gauss quadrature)

The first line is exact for polynomials f of degree k - 1, the second for degree 2 k - 1, and both for any f if k = d.

Sources: Golub and Meurant, Matrices, Moments and Quadrature (2010), Ch. 6; Saad 1992 for f(A) v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A function ``v -> A v`` for ``v`` of shape ``[B, *event]``, with one matrix per sample."""


@dataclass(frozen=True)
class Krylov:
    """The result of k products of the matrices, starting from one vector each.

    Args:
        rows: Q, orthonormal, ``[B, k, d]``; rows are 0 once the space is exhausted.
        norm: norm of the starting vector, ``[B]``.
        nodes: eigenvalues of T, float64 ``[B, k]``.
        vectors: its eigenvectors in columns, float64 ``[B, k, k]``.
        beyond: norm of what ``A q`` has outside of the space, for its last vector q, ``[B]``; 0 once it is exhausted.
    """

    rows: Tensor
    norm: Tensor
    nodes: Tensor
    vectors: Tensor
    beyond: Tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(A) v``, flat, ``[B, d]``."""
        first = self.vectors[:, 0]
        inner = (self.vectors @ (function(self.nodes) * first)[..., None])[..., 0]
        return self.norm[:, None] * (inner.to(self.rows.dtype)[:, None] @ self.rows)[:, 0]

    def quadratic(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``v^T f(A) v``, float64 ``[B]``."""
        return self.norm.double() ** 2 * (self.vectors[:, 0] ** 2 * function(self.nodes)).sum(1)

    def left_over(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``||v - A f(A) v|| / ||v||`` for the approximate inverse f, ``[B]`` (Saad, Iterative Methods, Prop. 6.20)."""
        inner = (self.vectors[:, -1] * function(self.nodes) * self.vectors[:, 0]).sum(1)
        return self.beyond.double() * inner.abs()


def lanczos(product: Product, v: Tensor, steps: int) -> Krylov:
    """Take k Lanczos steps, orthogonalising each new vector twice against all previous ones.

    Args:
        product: product with the symmetric matrices.
        v: a starting vector for each matrix, ``[B, *event]``.
        steps: k, the number of products, at least 1 and at most d.
    """
    shape, flat = v.shape, v.flatten(1)
    norm = flat.norm(dim=1)
    row = flat / torch.where(norm > 0, norm, 1.0)[:, None]
    rows = row[:, None]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    alive = norm > 0
    tiny = 1e3 * torch.finfo(v.dtype).eps
    for step in range(steps):
        image = product(row.reshape(shape)).flatten(1)
        alpha = (image * row).sum(1)
        # an exhausted space adds nodes of weight 0; place them where functions are finite
        first = diagonal[0] if diagonal else torch.where(alive, alpha.double(), 1.0)
        diagonal.append(torch.where(alive, alpha.double(), first))
        for _ in range(2):
            image = image - ((rows @ image[..., None]) * rows).sum(1)
        beta = image.norm(dim=1)
        if step == steps - 1:
            break
        size = torch.stack([each.abs() for each in diagonal + beside]).amax(0)
        alive = alive & (beta > tiny * size)
        beside.append(torch.where(alive, beta.double(), 0.0))
        row = torch.where(alive[:, None], image / torch.where(alive, beta, 1.0)[:, None], 0.0)
        rows = torch.cat([rows, row[:, None]], 1)
    matrix = torch.stack(diagonal, 1).diag_embed()
    if beside:
        off = torch.stack(beside, 1)
        matrix = matrix + off.diag_embed(1) + off.diag_embed(-1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return Krylov(rows, norm, nodes, vectors, torch.where(alive, beta, 0.0))
