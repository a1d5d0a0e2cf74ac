r"""Published posterior samplers on an exact network, each from the formulas of its paper.

All take steps of the same kernel at eta = 1, from the same start and times; they differ in the mean m' that replaces m
and in the noise they add.  Their vector-Jacobian products are written ``C v = (sigma_t^2 / alpha_t) J^T v``, which for
an exact network is the product with Cov[x_0|x_t].  A network call counts 1 and a product 2.

    Pi-GDM      m + C A^T (r^2 A A^T + s^2)^{-1} (y - A m),  r^2 = sigma^2 / (alpha^2 + sigma^2)    Song et al. 2023
    MMPS        m + C A^T (A C A^T + s^2)^{-1} (y - A m), by k steps of conjugate gradients         2405.13712
    TMPD        the same with A C A^T replaced by the diagonal of its row sums                      2310.06721
    DDNM        m + lambda A^+ (y - A m), and less noise where y brings some (DDNM+)                2212.00490
    DiffPIR     m + A^T (A A^T + rho)^{-1} (y - A m), rho = weight s^2 alpha^2 / sigma^2            2305.08995
    DPS         a step, then step_size J^T A^T (y - A m) / ||y - A m|| times 2                      2209.14687
    RePaint     what is measured diffused to the next level, the rest a step, each step taken again 2201.09865
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optcov.kernel import ReverseKernel
from optcov.schedule.levels import NoiseLevels


@dataclass
class Step:
    """What a method may use in one step of a batch of chains.

    Args:
        x_t, m: ``[B, d]``.
        times: the function ``v -> C v`` for ``[B, d]``.
        t, s: noise levels; ``is_last`` says whether s is 0.
        matrix: A, ``[m, d]``, with ``A A^T = gram I``.
        y: ``[B, m]``; its noise has the standard deviation ``noise``.
        bound: the values of m' are clipped to ``[-bound, bound]``.
        products: number of products taken so far.
    """

    x_t: Tensor
    m: Tensor
    times: Callable[[Tensor], Tensor]
    t: NoiseLevels
    s: NoiseLevels
    is_last: bool
    matrix: Tensor
    gram: float
    y: Tensor
    noise: float
    generator: torch.Generator
    bound: float = math.inf
    products: int = field(default=0)

    @property
    def residual(self) -> Tensor:
        """``y - A m``."""
        return self.y - self.m @ self.matrix.T

    def product(self, v: Tensor) -> Tensor:
        """Compute ``C v``, and count it."""
        self.products += 1
        return self.times(v)

    def white(self) -> Tensor:
        """Draw fresh noise, ``[B, d]``."""
        return torch.randn(self.m.shape, dtype=self.m.dtype, generator=self.generator)

    def moved(self, m: Tensor) -> Tensor:
        """Draw from the kernel with m, ``[B, d]``, as the estimate of x_0; return m itself in the last step."""
        m = m.clamp(-self.bound, self.bound)
        if self.is_last:
            return m
        kernel = ReverseKernel.from_levels(self.s, self.t)
        eps = (self.x_t - self.t.alpha * m) / self.t.sigma
        return kernel.mean(m, eps) + kernel.lambda_sq.sqrt() * self.white()

    def back(self, x_s: Tensor) -> Tensor:
        """Add noise to x_s, ``[B, d]``, up to the level t."""
        keep = self.t.alpha / self.s.alpha
        added = (self.t.sigma**2 - keep**2 * self.s.sigma**2).sqrt()
        x_t: Tensor = keep * x_s + added * self.white()
        return x_t


Method = Callable[[Step], Tensor]


def pi_gdm_for(variance: float) -> Method:
    """Pi-GDM with its r for data with this variance, which its paper takes for 1 on [-1, 1]."""

    def method(step: Step) -> Tensor:
        r_sq = variance * step.t.sigma**2 / (variance * step.t.alpha**2 + step.t.sigma**2)
        solved = step.residual / (r_sq * step.gram + step.noise**2)
        return step.moved(step.m + step.product(solved @ step.matrix))

    return method


pi_gdm = pi_gdm_for(1.0)


def mmps(iterations: int | None) -> Method:
    """MMPS with this many iterations; None to solve exactly, by one product for each measurement."""

    def method(step: Step) -> Tensor:
        def total(v: Tensor) -> Tensor:
            return step.product(v @ step.matrix) @ step.matrix.T + step.noise**2 * v

        if iterations is None:
            units = torch.eye(len(step.matrix), dtype=step.m.dtype)
            columns = [total(unit.expand_as(step.residual)) for unit in units]
            solved = torch.linalg.solve(torch.stack(columns, -1), step.residual[..., None])[..., 0]
        else:
            solved = conjugate_gradients(total, step.residual, iterations)
        return step.moved(step.m + step.product(solved @ step.matrix))

    return method


def tmpd(step: Step) -> Tensor:
    """TMPD; a row sum below 0 counts as 0."""
    sums = step.product(torch.ones_like(step.y) @ step.matrix) @ step.matrix.T
    solved = step.residual / (sums.clamp(min=0) + step.noise**2)
    return step.moved(step.m + step.product(solved @ step.matrix))


def ddnm(step: Step) -> Tensor:
    """DDNM+, for operators with ``A A^T = gram I``."""
    kernel = ReverseKernel.from_levels(step.s, step.t)
    spread = step.noise / step.gram**0.5  # standard deviation of A^+ n along each measured direction
    scale = 1.0 if step.is_last else (kernel.lambda_sq.sqrt() / (kernel.c * spread)).clamp(max=1)
    m = step.m + scale * step.residual @ step.matrix / step.gram
    if step.is_last:
        return m
    z = step.white()
    seen = z @ step.matrix.T @ step.matrix / step.gram
    left = (kernel.lambda_sq - (kernel.c * scale * spread) ** 2).clamp(min=0)
    eps = (step.x_t - step.t.alpha * m) / step.t.sigma
    x_s: Tensor = kernel.mean(m, eps) + kernel.lambda_sq.sqrt() * (z - seen) + left.sqrt() * seen
    return x_s


def diffpir(weight: float, zeta: float) -> Method:
    """DiffPIR; ``zeta`` is the share of fresh noise."""

    def method(step: Step) -> Tensor:
        rho = weight * step.noise**2 * step.t.alpha**2 / step.t.sigma**2
        m = step.m + step.residual / (step.gram + rho) @ step.matrix
        if step.is_last:
            return m
        eps = (step.x_t - step.t.alpha * m) / step.t.sigma
        noise = step.s.sigma * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * step.white())
        x_s: Tensor = step.s.alpha * m + noise
        return x_s

    return method


def dps(step_size: float) -> Method:
    """DPS, with the step size of its paper."""

    def method(step: Step) -> Tensor:
        slope = step.t.alpha / step.t.sigma**2 * step.product(step.residual @ step.matrix)
        x_s: Tensor = step.moved(step.m) + 2 * step_size * slope / step.residual.norm(dim=1, keepdim=True)
        return x_s

    return method


def repaint(step: Step) -> Tensor:
    """RePaint's step, for masks; a step is taken again after `Step.back`."""
    x_s = step.moved(step.m)
    known = step.s.alpha * step.y + step.s.sigma * step.white()[:, : step.y.shape[1]]
    seen = step.matrix.sum(0)
    joined: Tensor = x_s * (1 - seen) + known @ step.matrix
    return joined


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """``A^{-1} b`` for each sample, from 0 (Hestenes and Stiefel 1952)."""
    x, r = torch.zeros_like(b), b
    p, size = r, (b**2).sum(1, keepdim=True)
    for _ in range(iterations):
        image = product(p)
        step = size / (p * image).sum(1, keepdim=True).clamp(min=1e-300)
        x, r = x + step * p, r - step * image
        fresh = (r**2).sum(1, keepdim=True)
        p, size = r + fresh / size.clamp(min=1e-300) * p, fresh
    return x
