"""Compares the coefficients of the reverse kernel with 50-digit arithmetic, at every pair of times.

    python -m benchmarks.precision [N ...]        default N = 1000 and 4000: 17 million pairs, three etas each

The reference uses the published formulas only.  Tests compare the same numbers at some of the pairs.
"""

from __future__ import annotations

import argparse
import decimal
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optcov.kernel import ReverseKernel
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule

TOLERANCE = 1e-10
ETAS = (0.0, 0.5, 1.0)
SCHEDULES: dict[str, type[NoiseSchedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule}

Exact = NDArray[np.object_]  # elements are Decimal, which is ten times as fast as mpmath; only cosines need mpmath


def elementwise(function: Callable[..., Decimal]) -> Callable[..., Exact]:
    """Apply a function of numbers to arrays."""
    return np.vectorize(function, otypes=[object])


exactly = elementwise(Decimal)  # a float64 is a finite decimal
square_root, natural_log, exponential = (elementwise(f) for f in (Decimal.sqrt, Decimal.ln, Decimal.exp))


@contextmanager
def fifty_digits() -> Iterator[None]:
    """Let decimal and mpmath compute with 50 digits."""
    with decimal.localcontext(decimal.Context(prec=50)), mpmath.workdps(50):
        yield


def rounded(exact: Exact) -> Tensor:
    """Round to the nearest float64; this relative error of 1e-16 is far below the tolerance of 1e-10."""
    return torch.from_numpy(exact.astype(np.float64))


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest relative error; infinite if an exact zero is found as another number, or anything as NaN."""
    assert found.dtype == exact.dtype == torch.float64
    assert found.shape == exact.shape
    error = torch.where(found == exact, 0.0, (found - exact).abs() / exact.abs())
    return float(error.nan_to_num(torch.inf).max())


@dataclass(frozen=True)
class ExactPath:
    """The squares of the amplitudes at some times, beginning without noise."""

    alpha_sq: Exact
    sigma_sq: Exact

    @functools.cached_property
    def alpha(self) -> Exact:
        """``[K]``."""
        return square_root(self.alpha_sq)

    @functools.cached_property
    def sigma(self) -> Exact:
        """``[K]``."""
        return square_root(self.sigma_sq)

    def steps(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The coefficients of a kernel from index ``t`` to ``s < t``, with the shape of the indices, by name and eta.

        They follow the definitions literally, including ``sigma_s^2 - lambda^2``: 50 digits can afford a cancellation
        that float64 cannot.
        """
        index_s, index_t = s.numpy(), t.numpy()
        alpha_s, alpha_t = self.alpha[index_s], self.alpha[index_t]
        ratio_t = alpha_t / self.sigma[index_t]
        sigma_sq_s, sigma_sq_t = self.sigma_sq[index_s], self.sigma_sq[index_t]
        beta = sigma_sq_t - self.alpha_sq[index_t] / self.alpha_sq[index_s] * sigma_sq_s
        beta_tilde = beta * sigma_sq_s / sigma_sq_t
        found = {"beta": beta}
        for eta in ETAS:
            lambda_sq = Decimal(eta) ** 2 * beta_tilde
            eps_scale = square_root(sigma_sq_s - lambda_sq)
            found |= {
                f"lambda_sq {eta}": lambda_sq,
                f"eps_scale {eta}": eps_scale,
                f"c {eta}": alpha_s - eps_scale * ratio_t,
            }
        return {name: rounded(values) for name, values in found.items()}


def published_betas(name: str, total: int) -> Exact:
    """The variances of the N steps of the schedule ``name``, linear or cosine, ``[N]``."""
    if name == "linear":
        first, last = Decimal("1e-4"), Decimal("0.02")
        return np.array([(first + (last - first) * n / (total - 1)) * 1000 / total for n in range(total)])
    turn = mpmath.pi / 2 / mpmath.mpf("1.008")
    f = [mpmath.cos((mpmath.mpf(n) / total + mpmath.mpf("0.008")) * turn) ** 2 for n in range(total)]
    ratios = [after / before for before, after in zip(f, [*f[1:], mpmath.mpf(0)], strict=True)]
    return np.array([min(Decimal(mpmath.nstr(1 - ratio, 50)), Decimal("0.999")) for ratio in ratios])


def published_path(name: str, total: int) -> ExactPath:
    """Amplitudes at ``n / N``, n = 0..N."""
    kept: Exact = np.concatenate([[Decimal(1)], np.cumprod(Decimal(1) - published_betas(name, total))])
    return ExactPath(kept, 1 - kept)


def kernel_errors(path: ExactPath, schedule: NoiseSchedule, s: Tensor, t: Tensor, times: Tensor) -> dict[str, float]:
    """The largest relative error of each coefficient at pairs of indices into ``times``, by name and eta."""
    exact, levels = path.steps(s, t), schedule.levels(times)
    errors = {}
    for eta in ETAS:
        kernel = ReverseKernel.from_levels(levels[s], levels[t], eta)  # type: ignore[index]
        for name in ("lambda_sq", "eps_scale", "c"):
            errors[f"{name} {eta}"] = relative_error(getattr(kernel, name), exact[f"{name} {eta}"])
        errors["beta"] = relative_error(kernel.beta, exact["beta"])
    return errors


def all_pairs(name: str, total: int) -> dict[str, float]:
    """The largest relative errors over all ``0 <= s < t <= N``."""
    path, schedule = published_path(name, total), SCHEDULES[name](total)
    times = torch.arange(total + 1, dtype=torch.float64) / total
    worst: dict[str, float] = {}
    for n in range(1, total + 1):
        s = torch.arange(n)
        for key, error in kernel_errors(path, schedule, s, torch.full_like(s, n), times).items():
            worst[key] = max(worst.get(key, 0.0), error)
    return worst


def main() -> None:
    """Print the largest errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("total", nargs="*", type=int, default=[1000, 4000], help="N, the number of steps of a schedule")
    with fifty_digits():
        for total in parser.parse_args().total:
            for name in SCHEDULES:
                worst = all_pairs(name, total)
                print(f"{name} N = {total}: {total * (total + 1) // 2} pairs, largest relative errors", flush=True)
                print("  " + ", ".join(f"{key} {error:.1e}" for key, error in worst.items()), flush=True)
                assert max(worst.values()) <= TOLERANCE


if __name__ == "__main__":
    main()
