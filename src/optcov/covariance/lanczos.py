r"""Functions of a symmetric matrix that is known by its products alone, after k steps of Lanczos's method.

From a vector v, k products make an orthonormal ``Q [k, d]`` with ``T = Q A Q^T`` tridiagonal and v along its first row:

    f(A) v        ~ ||v|| Q^T f(T) e_1
    v^T f(A) v    ~ ||v||^2 e_1^T f(T) e_1 = ||v||^2 sum_j weight_j f(node_j)      (Gauss quadrature)

exact for polynomials f of degree k - 1 and 2 k - 1, and for any f when k = d.  Sources: Golub and Meurant, Matrices,
Moments and Quadrature (2010), Ch. 6; Saad 1992 for f(A) v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""``A v`` for ``v`` of shape ``[B, *event]``: one matrix a sample."""


@dataclass(frozen=True)
class Krylov:
    """What k products say of the matrices from one vector each.

    Args:
        rows: Q, orthonormal, ``[B, k, d]``; 0 where the space was exhausted.
        norm: of the vector, ``[B]``.
        nodes: eigenvalues of T, float64 ``[B, k]``.
        vectors: its eigenvectors in columns, float64 ``[B, k, k]``.
    """

    rows: Tensor
    norm: Tensor
    nodes: Tensor
    vectors: Tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(A) v``, flat, ``[B, d]``."""
        first = self.vectors[:, 0]
        inner = (self.vectors @ (function(self.nodes) * first)[..., None])[..., 0]
        return self.norm[:, None] * (inner.to(self.rows.dtype)[:, None] @ self.rows)[:, 0]

    def quadratic(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``v^T f(A) v``, float64 ``[B]``."""
        return self.norm.double() ** 2 * (self.vectors[:, 0] ** 2 * function(self.nodes)).sum(1)


def lanczos(product: Product, v: Tensor, steps: int) -> Krylov:
    """k steps from ``v``, ``[B, *event]``, with each new vector made orthogonal to all before it, twice.

    Args:
        product: symmetric.
        v: a vector for each matrix.
        steps: k, at least 1 and at most d; as many products.
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
        # a space that is exhausted adds nodes without weight; they are put where functions are finite
        first = diagonal[0] if diagonal else torch.where(alive, alpha.double(), 1.0)
        diagonal.append(torch.where(alive, alpha.double(), first))
        if step == steps - 1:
            break
        for _ in range(2):
            image = image - ((rows @ image[..., None]) * rows).sum(1)
        beta = image.norm(dim=1)
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
    return Krylov(rows, norm, nodes, vectors)
