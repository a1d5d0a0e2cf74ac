"""Muon: a momentum optimizer whose steps are orthogonal matrices, for networks that train in few steps.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the learning rate relative
to Adam's follows arXiv:2502.16982, Eq. 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from optcov.ranges import BelowOne, NonNegative

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, which maps singular values into [0.7, 1.2]
SMALLEST = 16  # the fewest rows and columns of a weight that is stepped as a matrix


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate ``U V^T`` of matrices ``U S V^T`` by Newton-Schulz iterations.

    The iterations are polynomials of the Gram matrix, so the long side enters only two products.

    Args:
        matrices: float ``[n, rows, columns]``, ``rows <= columns``.
        steps: number of iterations; 5 are enough for singular values down to 1/500 of the Frobenius norm.
    Returns:
        Same shape as ``matrices``; the singular values lie between 0.6 and 1.2, unless they were negligible before.
    """
    a, b, c = NEWTON_SCHULZ
    scaled = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    gram = scaled @ scaled.mT
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    product = identity.expand_as(gram)
    for _ in range(steps):
        polynomial = a * identity + b * gram + c * gram @ gram
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    orthogonal: Tensor = product @ scaled
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions between feature maps and Adam for all other weights, with one learning rate.

    Muon treats the weight of a convolution as a matrix ``[out, rest]`` if both sides have at least 16 entries.  Adam
    takes biases, norms, linear layers, embedding tables, and the convolutions that read or write images.  The step of a
    matrix has a root mean square of ``0.2 lr rate``.

    Args:
        params: parameters, or groups of them.
        lr: learning rate of Adam.
        rate: learning rate of matrices relative to ``lr``.
        momentum: Nesterov momentum of matrices, in [0, 1).
        betas, eps: as in Adam.
    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: NonNegative = 3e-3,
        rate: NonNegative = 2.0,
        momentum: BelowOne = 0.95,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("rate", rate), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"optimizer.{name} must be at least 0 (got {value}): give a positive number")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"optimizer.{name} must be in [0, 1) (got {value}): give 0.9 or more")
        super().__init__(params, {"lr": lr, "rate": rate, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, recomputes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            matrices = [weight for weight in weights if is_matrix(weight)]
            self._step_matrices(group, matrices)
            self._step_others(group, [weight for weight in weights if not is_matrix(weight)])
        return loss

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        if not weights:
            return
        gradients = gradients_of(weights)
        momenta = [self._buffer(weight, "momentum") for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike = defaultdict(list)  # weights of equal shape form one batch
        for weight, direction in zip(weights, directions, strict=True):
            matrix = direction.flatten(1)
            is_tall = matrix.shape[0] > matrix.shape[1]
            matrix = matrix.mT if is_tall else matrix
            alike[matrix.shape].append((weight, matrix, is_tall))
        for (_, columns), members in alike.items():
            steps = orthogonalized(torch.stack([matrix for _, matrix, _ in members]))
            for (weight, _, is_tall), step in zip(members, steps, strict=True):
                step = step.mT if is_tall else step
                weight.add_(step.reshape(weight.shape), alpha=-0.2 * columns**0.5 * group["lr"] * group["rate"])

    def _step_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        if not weights:
            return
        gradients = gradients_of(weights)
        means = [self._buffer(weight, "mean") for weight in weights]
        squares = [self._buffer(weight, "square") for weight in weights]
        beta1, beta2 = group["betas"]
        group["step"] = step = group.get("step", 0) + 1
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_addcdiv_(weights, means, scales, -group["lr"] / (1 - beta1**step))

    def _buffer(self, weight: Tensor, name: str) -> Tensor:
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight)
        return state[name]  # type: ignore[no-any-return]


def gradients_of(weights: list[Tensor]) -> list[Tensor]:
    """The gradients of weights, all of which must have one."""
    return [weight.grad for weight in weights if weight.grad is not None]


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight belongs to a convolution, ``[out, in, ...]``, and has at least 16 rows and columns."""
    return weight.ndim > 2 and min(len(weight), weight[0].numel()) >= SMALLEST
