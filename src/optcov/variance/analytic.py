"""Analytic-DPM: the best covariance that does not depend on x_t, from one Monte-Carlo pass.

    analytic              C = r (1 - E||e||^2 / d)         Analytic-DPM (arXiv:2201.06503), Eq. 8 and 9
    analytic_diag         C = r (1 - E[e^2])               Extended-Analytic-DPM (arXiv:2206.07309), Sec. 3
    analytic_imperfect    C = r E||eps - e||^2 / d         the same, for a mean that is not exact
    ..._imperfect_diag    C = r E[(eps - e)^2]

with ``r = sigma_t^2 / alpha_t^2``; expectations over data and noise, at each time n = 1..N.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.covariance import Covariance, DiagonalCovariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction, noise_variance
from optcov.variance.base import VarianceStrategy


def mean_with_control(values: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of random values, made sharper by a control variate of known mean 0 (regression estimator).

    At large t, e is nearly eps, and ``1 - E[e^2]`` is a small difference that ``r`` enlarges a thousandfold: with
    ``eps^2 - 1`` as control its error shrinks by orders of magnitude, for the same expectation.

    Args:
        values, control: float64 ``[M, ...]``, M at least 3.
    Returns:
        The mean and its standard error, each ``[...]``.
    """
    count = len(values)
    centred = control - control.mean(0)
    slope = (values * centred).sum(0) / (centred**2).sum(0)
    residual = values - slope * control
    return residual.mean(0), residual.std(0) * ((count - 1) / (count - 2) / count) ** 0.5


class Analytic(VarianceStrategy):
    """``C = r Cov[eps]``, with Cov[eps] measured once per time and kept as a buffer.

    Args:
        denoiser: the mean network, for its shapes.
        per_pixel: one variance for each pixel instead of one for all.
        imperfect_mean: measure ``E[(eps - e)^2]``, which stays the optimal variance when the mean network is not exact,
            instead of ``1 - E[e^2]``, which equals it for an exact one.
        num_images: M, the images of the pass; each is seen at every time, with noise of its own.

    Buffers (float64, index n = 0..N, [N + 1] or [N + 1, *event]):
        eps_variance: the estimate of Cov[eps | x_t], averaged over x_t; 1 - Gamma_n in Analytic-DPM's notation.
        eps_variance_se: its standard error.
    """

    fitting = "calibrate"

    def __init__(
        self, denoiser: Denoiser, per_pixel: bool = False, imperfect_mean: bool = False, num_images: int = 128
    ) -> None:
        super().__init__(denoiser)
        if num_images < 3:
            raise ValueError(f"var.num_images = {num_images} gives no estimate with an error: give at least 3")
        self.per_pixel, self.imperfect_mean, self.num_images = per_pixel, imperfect_mean, num_images
        shape = (denoiser.schedule.num_steps + 1, *(denoiser.data_shape if per_pixel else ()))
        self.eps_variance: Tensor
        self.eps_variance_se: Tensor
        for name in ("eps_variance", "eps_variance_se"):
            self.register_buffer(name, torch.full(shape, torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def calibrate(self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0) -> None:
        batches = list(batches)
        device = batches[0].device
        self.to(device)
        generator = torch.Generator(device).manual_seed(seed)
        times = denoiser.schedule.grid(device)
        for n, t in enumerate(tqdm(times, desc="2/3 variance: one pass", leave=False), start=1):
            drawn = [self._measure(denoiser, x_0, t, generator) for x_0 in batches]
            measured, control = (torch.cat(values) for values in zip(*drawn, strict=True))
            self.eps_variance[n], self.eps_variance_se[n] = mean_with_control(measured, control)
        self.eps_variance[0], self.eps_variance_se[0] = 1.0, 0.0  # x_0 itself says nothing of the noise

    def _measure(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The estimate from each sample, and a variable of mean 0 that goes with it; ``[B]`` or ``[B, *event]``."""
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        e, eps = denoiser(denoiser.diffuse(x_0, eps, t), t).eps.double(), eps.double()
        measured, control = (eps - e) ** 2 if self.imperfect_mean else 1 - e**2, eps**2 - 1
        return (measured, control) if self.per_pixel else (measured.flatten(1).mean(1), control.flatten(1).mean(1))

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        variance = denoiser.schedule.interpolate(self.eps_variance, t)
        r = noise_variance(denoiser.schedule, t)
        if not self.per_pixel:
            return IsotropicCovariance((r * variance).to(x_t.dtype).expand(len(x_t)), x_t.shape[1:])
        r = r.reshape(r.shape + (1,) * (x_t.ndim - 1))
        return DiagonalCovariance((r * variance).to(x_t.dtype).expand(x_t.shape))
