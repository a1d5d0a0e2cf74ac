"""User-defined schedules: a list of betas, or two functions of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from optcov.schedule.base import NoiseSchedule
from optcov.schedule.vp import DiscreteSchedule
from optcov.wording import first_line

SMALLEST_ALPHA_SQ = 1e-20  # replaces 0 at the end of a zero-terminal-SNR schedule, so that its logarithm is finite


class BetaSchedule(DiscreteSchedule):
    """A schedule defined by any N betas.

    Args:
        betas: ``[N]``, at least two, beta_n = Var of ``q(x_n | x_{n-1})`` for n = 1..N, each in (0, 1).  The last may
            be 1, which leaves no signal (arXiv:2305.08891); this suits networks that predict v or x_0.
    Raises:
        ValueError: if there are fewer than two, or one is not a number in that range.
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        beta = torch.as_tensor(betas, dtype=torch.float64, device="cpu").clone()
        if beta.ndim != 1 or len(beta) < 2 or not bool(((beta > 0) & (beta <= 1)).all() and (beta[:-1] < 1).all()):
            raise ValueError(
                f"betas must be at least 2 finite numbers, each between 0 and 1 (got shape {list(beta.shape)}"
                + (f", from {float(beta.min()):.4g} to {float(beta.max()):.4g}" if beta.numel() else "")
                + "): give the variance of each step, q(x_n | x_(n-1)), first step first"
            )
        super().__init__(beta, SMALLEST_ALPHA_SQ)


class FunctionSchedule(NoiseSchedule):
    """A Gaussian path defined by its two amplitudes.

    Args:
        alpha, sigma: functions from float64 times in [0, 1], of any shape, to the amplitudes of signal and noise; alpha
            must be 1 at t = 0 and never increase, sigma must increase from 0.
        num_steps: N, the size of the time grid on which heads are trained and tables are stored.
    Raises:
        ValueError: if the functions do not define such a path.
    """

    def __init__(
        self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], num_steps: int = 1000
    ) -> None:
        super().__init__(num_steps)
        self._alpha, self._sigma = alpha, sigma
        grid = torch.cat([torch.zeros(1, dtype=torch.float64), self.grid()])
        try:
            a, s = (torch.as_tensor(each(grid), dtype=torch.float64) for each in (alpha, sigma))
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f"schedule must be two functions of a tensor of times (they failed: {first_line(error)}): "
                "use torch's functions, such as torch.cos, not those of math"
            ) from error
        if a.shape != grid.shape or s.shape != grid.shape or not (a.isfinite() & s.isfinite()).all():
            raise ValueError(
                "schedule must be two functions of time that return finite numbers in the shape of t (got shapes "
                f"{list(a.shape)} and {list(s.shape)} for {list(grid.shape)}): give alpha(t) and sigma(t)"
            )
        if abs(float(a[0]) - 1) > 1e-6 or not 0 <= float(s[0]) <= 0.05:
            raise ValueError(
                f"schedule must start from clean data, alpha(0) = 1 and sigma(0) = 0 (got {float(a[0]):.4g} and "
                f"{float(s[0]):.4g}): give amplitudes, not variances, with t = 1 for noise"
            )
        if bool((a < 0).any() or (a.diff() > 1e-12).any() or (s.diff() <= 0).any()):
            raise ValueError(
                "schedule must have an alpha that never increases or becomes negative and a sigma that increases with "
                f"time (got alpha from {float(a.min()):.4g} to {float(a.max()):.4g} and sigma from "
                f"{float(s.min()):.4g} to {float(s.max()):.4g}): give amplitudes on [0, 1], with t = 1 for noise"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.as_tensor(self._alpha(t.to(torch.float64)), dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        return torch.where(t > 0, torch.as_tensor(self._sigma(t), dtype=torch.float64), 0.0)

    def time(self, log_snr: Tensor) -> Tensor:
        low, high = torch.zeros_like(log_snr, dtype=torch.float64), torch.ones_like(log_snr, dtype=torch.float64)
        for _ in range(60):  # bisection, to the last bit
            middle = (low + high) / 2
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2
