r"""Conditioning on a measurement ``y = A x_0 + n``, ``n ~ N(0, s^2 I)``: an update of the mean and its covariance.

    G = C A^T (A C A^T + s^2 I)^{-1}
    m' = m + G (y - A m)      C' = C - G A C      e' = (x_t - alpha_t m') / sigma_t

Why the kernel goes on unchanged with (m', e', C'): y depends on x_0 alone, so that ``p(x_s | x_t, y)`` is the integral
of ``q(x_s | x_t, x_0) p(x_0 | x_t, y)`` over x_0, with the same q for every eta and every path.  Its mean is linear in
x_0, so that the moments of ``p(x_0 | x_t, y)`` give those of the step, where e is what belongs to m'.  For Gaussian
data ``p(x_0 | x_t)`` is ``N(m, C)``, the update is Bayes' rule, every step is exact, and a chain that starts at
``p(x_t | y)`` and keeps its last draw returns the posterior ``p(x_0 | y)`` itself, in any number of steps.  For other
data the step takes N(m, C)'s posterior; with a diagonal C, a mask tells unmeasured values nothing.

No gradient of the network is needed, and no call but the mean's.  A non-linear function of x_0 is replaced by its
first-order expansion around each step's m (`optcov.inverse.LinearizedOperator`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.covariance.base import Noise
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance, GuidedPrediction
from optcov.inverse import ForwardModel, condition
from optcov.inverse.conditioning import TOLERANCE
from optcov.kernel import ReverseKernel
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, VarianceStrategy
from optcov.variance.fixed import BetaTilde

OperatorFactory = Callable[[tuple[int, ...]], ForwardModel]
"""``data_shape -> operator``."""
KEEPS_NOISE = {"sample": True, "mean": False}
NOT_THE_NOISE = 1.3  # ratio of the residual's size to the stated noise from which a chain says that they differ


@dataclass(frozen=True, kw_only=True)
class MeasuredPrediction(GuidedPrediction):
    """A prediction after the update, with ``C'`` and ``y - A m'``.

    Args:
        covariance: C'.
        residual: ``y - A m'``, ``[B, *measurement]``.
    """

    covariance: Covariance
    residual: Tensor


class MeasurementGuidance(Guidance):
    """``guidance=measurement``: samples of the posterior of x_0 given a linear measurement with Gaussian noise.

    It goes with samplers that draw from the covariance of a strategy, such as ``ddpm`` and ``ddim``.

    Args:
        denoiser: the mean network.
        num_classes: K, the number of classes of the data; labels, if any, go to the network.
        operator: A, or what makes it from the shape of the data.
        y: measurements, as `ForwardModel.accept` takes them: one for all samples of a batch, or one for each; with a
            ``count``, those of all samples.
        noise: s, positive, in the unit of y: a number, or one for each value of y, such as sqrt(y) of counts with
            Poisson noise, which is then approximated by a Gaussian.  Infinity stands for no measurement.
        estimate: ``sample`` to keep the noise of the last draw, which posterior samples need; ``mean`` to return the
            mean of the last step, as a reconstruction.
        count: number of samples of each measurement, so that sample i belongs to measurement ``i // count`` of y (see
            `of`); None if y has those of a batch.
        names: what each measurement is called.
        solver_steps: number of Lanczos steps, which equal conjugate gradients, where a solution has no closed form and
            more than 512 measurements, or C is matrix-free: see `optcov.inverse.innovation`.  A chain warns if a
            relative residual is then above `optcov.inverse.conditioning.TOLERANCE`.
    Raises:
        ValueError: if an argument is out of range, or y does not fit the operator.
    """

    steers = True
    needs_labels = False
    y: Tensor
    variance: Tensor
    unsolved: Tensor  # the largest relative residual of a chain's solutions so far, 0-dimensional

    def __init__(
        self,
        denoiser: Denoiser,
        num_classes: int | None = None,
        *,
        operator: ForwardModel | OperatorFactory,
        y: Tensor,
        noise: float | Tensor = 0.05,
        estimate: str = "sample",
        solver_steps: int = 50,
        count: int | None = None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(denoiser, num_classes)
        self.operator = operator if isinstance(operator, ForwardModel) else operator(denoiser.data_shape)
        if self.operator.event_shape != denoiser.data_shape:
            raise ValueError(
                f"operator must act on the data's shape {tuple(denoiser.data_shape)} (got one of "
                f"{tuple(self.operator.event_shape)}): make it for that shape"
            )
        noise = torch.as_tensor(noise, dtype=torch.float64)
        if not bool((noise > 0).all()):
            raise ValueError(
                f"noise must be above 0, as A C A^T may be singular (got {float(noise.min())}): give the standard "
                "deviation of y's noise, or a small number such as 1e-3 of the data's range"
            )
        if noise.shape not in ((), self.operator.measurement_shape):
            raise ValueError(
                f"noise must be a number, or one for each value of y, {tuple(self.operator.measurement_shape)} (got "
                f"shape {tuple(noise.shape)}): give the standard deviation"
            )
        if estimate not in KEEPS_NOISE:
            raise ValueError(f"estimate must be one of {', '.join(KEEPS_NOISE)} (got {estimate!r}): give sample")
        if solver_steps < 1:
            raise ValueError(f"solver_steps must be at least 1 (got {solver_steps}): give such as 50")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1 (got {count}): give the number of samples of a measurement")
        self.register_buffer("y", self.operator.accept(y))  # persistent, so that it is part of what identifies samples
        self.register_buffer("variance", noise**2, persistent=False)
        self.register_buffer("unsolved", torch.zeros((), dtype=torch.float64), persistent=False)
        self.is_blind = math.isinf(float(noise.min()))
        self.keeps_noise, self.solver_steps = KEEPS_NOISE[estimate], solver_steps
        self.count, self.names = count, tuple(names)

    def check_count(self, num_samples: int) -> None:
        if self.count is not None and num_samples != len(self.y) * self.count:
            raise ValueError(
                f"num_samples must be {len(self.y) * self.count}, for {len(self.y)} measurements with guidance.count = "
                f"{self.count} samples each (got {num_samples}): set num_samples={len(self.y) * self.count}"
            )

    def of(self, indices: Sequence[int]) -> Guidance:
        """The guidance of these samples; indices beyond the last sample, with which batches are filled, go with it."""
        if self.count is None:
            return self
        found = copy(self)  # shares everything but the measurements
        rows = (torch.tensor(list(indices), device=self.y.device) // self.count).clamp(max=len(self.y) - 1)
        found._buffers = self._buffers | {"y": self.y[rows]}
        found.count = None
        return found

    def check(self, strategy: VarianceStrategy) -> None:
        if isinstance(strategy, BetaTilde) or not isinstance(strategy, CovarianceModel):
            raise ValueError(
                "var must model Cov[x_0|x_t] for guidance=measurement, which conditions it (got "
                f"{type(strategy).__name__}, which has none): set var=low_rank, npr_dpm or analytic, with sampler=ddpm "
                "or ddim"
            )

    def steer(
        self, denoiser: Denoiser, strategy: VarianceStrategy, own: Prediction, condition: Tensor | None
    ) -> Prediction:
        return own if self.is_blind else self.measured(denoiser, strategy, own)

    def measured(self, denoiser: Denoiser, strategy: VarianceStrategy, own: Prediction) -> MeasuredPrediction:
        """The update of a network's own prediction."""
        assert isinstance(strategy, CovarianceModel)
        if len(self.y) not in (1, len(own.x0)):
            raise ValueError(
                f"y must be one measurement, or one for each of {len(own.x0)} samples (got {len(self.y)}): use "
                "optcov.restore for several measurements"
            )
        y = self.y.to(own.x0.dtype).expand(len(own.x0), *self.operator.measurement_shape)
        prior = strategy.bounded_covariance(denoiser, own)
        with torch.autocast(own.x0.device.type, enabled=False):  # matrices A in half precision would not be A
            residual = y - self.operator(own.x0)
            linear = self.operator.near(own.x0)
            found = condition(prior, residual, linear, self.variance, self.solver_steps)
            shift = found.shift
            self.unsolved = torch.maximum(self.unsolved, found.residual.max())
            x0 = own.x0 + shift
            left = y - self.operator(x0)
        eps = own.eps - per_sample(own.level.alpha / own.level.sigma, shift) * shift  # (x_t - alpha m') / sigma
        output = denoiser.parameterization.target(x0, eps, own.level)
        return MeasuredPrediction(
            own.x_t,
            own.level,
            x0,
            eps,
            output,
            own.features,
            own.condition,
            start=own,
            covariance=found.covariance,
            residual=left,
        )

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        if not isinstance(prediction, MeasuredPrediction):
            return super().transition(kernel, denoiser, strategy, prediction)
        return kernel.covariance(prediction.covariance)

    def covariance(
        self, kernel: ReverseKernel, denoiser: Denoiser, strategy: VarianceStrategy, prediction: Prediction
    ) -> Covariance:
        if not isinstance(prediction, MeasuredPrediction):
            return super().covariance(kernel, denoiser, strategy, prediction)
        return prediction.covariance

    def finish(self, x_0: Tensor, prediction: Prediction, noise: Noise) -> Tensor:
        if not isinstance(prediction, MeasuredPrediction):
            return x_0
        self.compare_noise(prediction)
        self.compare_tolerance()
        return x_0 + prediction.covariance.draw(noise) if self.keeps_noise else x_0

    def compare_tolerance(self) -> None:
        """Warn where a solution of the chain that ends was not exact, and start anew."""
        left = float(self.unsolved)
        self.unsolved = torch.zeros_like(self.unsolved)
        if left > TOLERANCE:
            warnings.warn(
                f"solver_steps should be above {self.solver_steps} (got relative residuals of up to {left:.2g}, with a "
                f"tolerance of {TOLERANCE:g}): raise it to come closer to the posterior of N(m, C), "
                "at the cost of as many products with C",
                stacklevel=2,
            )

    def compare_noise(self, prediction: MeasuredPrediction) -> None:
        """Warn where the residual at the lowest noise level contradicts the noise that was stated.

        Noise that is twice what was stated leaves a ratio below 2 there: steps at higher noise have taken a part of it
        for the image.
        """
        ratio = float((prediction.residual.double() ** 2 / self.variance).mean().sqrt())
        # a measurement may stand there once for each of its samples
        count = self.y.unique(dim=0).numel()  # type: ignore[no-untyped-call]
        chance = (1 + 5 * (2 / count) ** 0.5) ** 0.5  # five standard deviations of a mean of squares
        if ratio > max(NOT_THE_NOISE, chance):
            stated = float(self.variance.mean().sqrt())
            warnings.warn(
                f"noise should be near {ratio * stated:.3g} (got {stated:.3g}, which is {ratio:.1f} times smaller than "
                "y - A x_0): check that y and its noise are in the unit of the network's data, such as [-1, 1]; if "
                "they are, C is too small: choose another var",
                stacklevel=2,
            )
