r"""The scores of an estimator: at points of one time, and along a path of many steps.

At each time, about the network's mean m' (`Node.about_the_mean` is C here, and C' the estimator's answer):

    diagonal, frobenius   |diag C' - diag C| / |diag C| and |C' - C|_F / |C|_F
    excess                NLL of N(m', C') less that of N(m', C), in nats per dimension, in closed form; infinite where
                          C' has no density
    c50 c90 c95           coverage of the intervals of x_0, pixel by pixel, in %
    residual              mean of (x_0 - m')^2 / C'_ii, which is 1 for the exact C; infinite where a variance is 0
    pit                   histogram of ten bins of Phi((x_0 - m') / sqrt(C'_ii)): all 0.1 if pixels are Gaussian
    ne, seconds           of a covariance with its draw, beside the prediction

Along a path of T steps of DDPM, even in log SNR, the divergence of the chain p from the exact reverse process q is

    sum E KL(q || p) = sum E KL(q || g) + sum E KL(g || p),    q = q(x_s|x_t), p = p(x_s|x_t),

where g is the Gaussian with the mean and covariance of q: log(g / p) is quadratic, and has the same mean under both.
So the second term is closed form given x_t (`path_excess`).  The first is what no Gaussian step can avoid (`floor`),
the same for all estimators; it is estimated by mean(log(q / g) + b (g / q - 1)), where the second part has mean 0, and
b is the number of least variance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from optcov.covbench.tasks import STEPS, Bench
from optcov.covbench.truths import DIM, SHAPE
from optcov.kernel import ReverseKernel
from optcov.sampler import NoiseStream
from optcov.variance.base import CovarianceModel

Measured = tuple[float, float]  # a mean and its standard error
LEVELS = {"c50": 0.6744897501960817, "c90": 1.6448536269514722, "c95": 1.959963984540054}
SLOPE_FROM = 32  # steps, from which a slope is fitted
FLOOR_STEPS = (*STEPS, 256, 512)
FLOOR_PATHS, CHUNK = 256, 64  # paths, and how many are in memory at once


def measured(values: Tensor) -> Measured:
    """The mean of independent values ``[n]``, and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


@torch.no_grad()
def at_times(bench: Bench, strategy: CovarianceModel) -> list[dict[str, Any]]:
    """The scores at each time; but for t, ne, seconds and pit, each is a mean and its standard error."""
    found = []
    for t, node in bench.nodes.items():
        prediction = bench.predicted(node)
        noise = NoiseStream(0, range(len(node.x_t)), SHAPE, dtype=torch.float64)
        before, began = bench.denoiser.cost.ne, time.process_time()
        model = strategy.bounded_covariance(bench.denoiser, prediction)
        model.draw(noise)
        seconds, ne = time.process_time() - began, bench.denoiser.cost.ne - before
        matrix = model.dense().double()
        residual = (bench.x_0 - prediction.x0).flatten(1)
        found.append(
            {
                "t": t,
                **compared(matrix, node.about_the_mean),
                **calibration(residual, matrix.diagonal(dim1=1, dim2=2)),
                "ne": ne / len(node.x_t),
                "seconds": seconds / len(node.x_t),
            }
        )
    return found


def compared(found: Tensor, exact: Tensor) -> dict[str, Measured]:
    """How far covariances are from exact ones, both ``[B, d, d]``."""
    own, other = found.diagonal(dim1=1, dim2=2), exact.diagonal(dim1=1, dim2=2)
    failed = torch.linalg.cholesky_ex(found)[1]
    excess = gaussian_divergence(exact, found, torch.zeros_like(own)) / own.shape[1]
    return {
        "diagonal": measured((own - other).norm(dim=1) / other.norm(dim=1)),
        "frobenius": measured((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)),
        "excess": measured(torch.where(failed == 0, excess, torch.inf)),
    }


def calibration(residual: Tensor, variance: Tensor) -> dict[str, Any]:
    """Coverage, residuals and PIT of residuals for variances, both ``[B, d]``."""
    z = residual / variance.sqrt()
    counts = torch.histc(torch.special.ndtr(z), 10, 0, 1)
    return {
        **{name: measured(100 * (z.abs() <= bound).double().mean(1)) for name, bound in LEVELS.items()},
        "residual": measured((z**2).mean(1)),
        "pit": (counts / counts.sum()).tolist(),
    }


def gaussian_divergence(exact: Tensor, found: Tensor, off: Tensor) -> Tensor:
    """``KL(N(off, exact) || N(0, found))`` in nats, ``[B]``, for covariances ``[B, d, d]`` and off ``[B, d]``."""
    whole, root = torch.linalg.cholesky(exact), torch.linalg.cholesky_ex(found)[0]
    half = torch.linalg.solve_triangular(root, torch.cat([whole, off[..., None]], 2), upper=False)
    logdets = [2 * each.diagonal(dim1=1, dim2=2).log().sum(1) for each in (root, whole)]
    divergence: Tensor = ((half**2).sum((1, 2)) - exact.shape[1] + logdets[0] - logdets[1]) / 2
    return divergence


@torch.no_grad()
def path_excess(bench: Bench, strategy: CovarianceModel) -> dict[int, Measured]:
    """``sum E KL(g || p)`` in nats for each number of steps, and its standard error over the paths."""
    total = {steps: torch.zeros(len(bench.path[0].x_t), dtype=torch.float64) for steps in STEPS}
    for i, node in enumerate(bench.path):
        strides = {steps: STEPS[-1] // steps for steps in STEPS if i and i % (STEPS[-1] // steps) == 0}
        if not strides:
            continue
        matrix = strategy.bounded_covariance(bench.denoiser, bench.predicted(node)).dense().double()
        for steps, stride in strides.items():
            kernel = ReverseKernel.from_levels(bench.path[i - stride].level, node.level)
            exact, found = (_step(kernel, each) for each in (node.covariance, matrix))
            total[steps] += gaussian_divergence(exact, found, kernel.c * node.error)
    return {steps: measured(each) for steps, each in total.items()}


def _step(kernel: ReverseKernel, covariance: Tensor) -> Tensor:
    """``lambda^2 I + c^2 C``, ``[B, d, d]``."""
    return kernel.lambda_sq * torch.eye(DIM, dtype=torch.float64) + kernel.c**2 * covariance


@torch.no_grad()
def floor(bench: Bench, count: int = FLOOR_PATHS) -> dict[int, Measured]:
    """``sum E KL(q || g)`` in nats for each of `FLOOR_STEPS`, and its standard error over ``count`` paths.

    Of more steps than `STEPS` has, those are taken that end at its levels, and stand for their neighbours.
    """
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    terms = torch.cat([_log_ratios(bench, size, 1 + chunk) for chunk, size in enumerate(sizes)], 2)
    found = {}
    for steps, (logs, ratios) in zip(FLOOR_STEPS, terms, strict=True):
        joint = torch.stack([logs, ratios]).cov()
        share = -joint[0, 1] / joint[1, 1].clamp(min=torch.finfo(joint.dtype).tiny)
        found[steps] = measured(logs + share * ratios)
    return found


def _log_ratios(bench: Bench, count: int, chunk: int) -> Tensor:
    """The sums of ``log(q / g)`` and of ``g / q - 1`` over the steps of each path, ``[FLOOR_STEPS, 2, count]``."""
    finest, coarse = FLOOR_STEPS[-1], STEPS[-1]
    chains = bench.chains(count, finest, chunk)

    @cache
    def density(i: int) -> Tensor:
        level, x_t = chains[i]
        return bench.truth.log_density(x_t.flatten(1), level.alpha, level.sigma)

    total = torch.zeros(len(FLOOR_STEPS), 2, count, dtype=torch.float64)
    for i in range(finest // coarse, finest + 1, finest // coarse):
        t = bench.node(*chains[i])
        prediction = bench.predicted(t)
        for k, steps in enumerate(FLOOR_STEPS):
            if i % (finest // steps):
                continue
            level, x_s = chains[i - finest // steps]
            kernel = ReverseKernel.from_levels(level, t.level)
            off = (x_s - kernel.mean(prediction.x0, prediction.eps)).flatten(1) + kernel.c * t.error
            noise = (t.x_t - t.level.alpha / level.alpha * x_s).flatten(1)
            noising = -((noise**2).sum(1) / kernel.beta + DIM * (2 * math.pi * kernel.beta).log()) / 2
            exact = density(i - finest // steps) + noising - density(i)
            log_ratio = exact + _nll(off, _step(kernel, t.covariance))
            total[k] += max(1, steps // coarse) * torch.stack([log_ratio, torch.expm1(-log_ratio)])
    return total


def _nll(off: Tensor, covariance: Tensor) -> Tensor:
    """``-log N(off; 0, covariance)``, ``[B]``."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, off[..., None], upper=False)
    logdet = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    nll: Tensor = ((white**2).sum((1, 2)) + logdet + off.shape[1] * math.log(2 * math.pi)) / 2
    return nll


def slope(path: Mapping[int, float]) -> float:
    """Of log divergence in log T, by least squares from `SLOPE_FROM` steps on; NaN where there is none."""
    kept = {math.log(steps): value for steps, value in path.items() if steps >= SLOPE_FROM}
    if len(kept) < 2 or min(kept.values()) <= 1e-9:
        return math.nan
    x, y = torch.tensor(list(kept), dtype=torch.float64), torch.tensor(list(kept.values()), dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
