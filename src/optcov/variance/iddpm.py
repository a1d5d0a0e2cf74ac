r"""Improved DDPM's learned range: the one strategy that models the step and not ``Cov[x_0 | x_t]``.

    Sigma = exp(v log beta_{t|s} + (1 - v) log beta_tilde_{t|s}),   v = (head + 1) / 2

Source: Improved DDPM (arXiv:2102.09672), Eq. 15.  The head is trained on L_vlb with the mean held fixed (their
stop-gradient), so a frozen mean network keeps its quality.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood import gaussian_kl, pixel_log_mass
from optcov.variance.base import HeadFactory, VarianceStrategy


class LearnedRange(VarianceStrategy):
    """A variance between beta_tilde and beta_{t|s}, interpolated in the logarithm; for DDPM steps (eta = 1) alone.

    Args:
        denoiser: the mean network, for its shapes.
        head: makes v's head from ``(feature_channels, data_shape)``.
    """

    fitting = "train"
    cut_last = False

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser)
        if denoiser.schedule.num_steps < 2:
            raise ValueError("schedule.num_steps = 1 leaves no range between beta_tilde and beta: give at least 2")
        self.head = head(denoiser.feature_channels, denoiser.data_shape)

    def check_step(self, eta: float) -> None:
        if eta != 1:
            raise ValueError(
                f"sampler.eta = {eta} has no meaning for var=iddpm, which learns the variance of a DDPM step: "
                "set sampler=ddpm or sampler.eta=1, or choose another var"
            )

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor
    ) -> Covariance:
        v = (self.head(prediction.features, t).to(x_t.dtype) + 1) / 2
        log_beta, log_beta_tilde = per_sample(kernel.beta.log(), x_t), per_sample(kernel.lambda_sq.log(), x_t)
        return DiagonalCovariance((v * log_beta + (1 - v) * log_beta_tilde).exp())

    def loss(self, denoiser: Denoiser, prediction: Prediction, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """L_vlb of the full chain's step from ``t`` to ``t - 1/N``, in nats; ``t`` is ``[B]`` on the grid (Eq. 4-7)."""
        schedule = denoiser.schedule
        first = 1 / schedule.num_steps
        is_last_step = t < 1.5 * first
        # beta_tilde is 0 at the last step; it is given that of the step before (their posterior_log_variance_clipped)
        clipped_t = torch.where(is_last_step, t + first, t)
        clipped = ReverseKernel.between(schedule, clipped_t - first, clipped_t).lambda_sq
        kernel = ReverseKernel.between(schedule, (t - first).clamp(min=0), t)
        log_beta, log_beta_tilde = per_sample(kernel.beta.log(), x_t), per_sample(clipped.log(), x_t)
        v = (self.head(prediction.features, t).to(x_t.dtype) + 1) / 2
        log_variance = v * log_beta + (1 - v) * log_beta_tilde
        x_0 = (x_t - per_sample(schedule.sigma(t), x_t) * eps) / per_sample(schedule.alpha(t), x_t)
        mean_q = kernel.mean(x_0, eps)
        mean_p = kernel.mean(prediction.x0, prediction.eps).detach()
        kl = gaussian_kl(mean_q, log_beta_tilde, mean_p, log_variance)
        decoder_log_variance = torch.where(
            per_sample(is_last_step, x_t) > 0, log_variance, 0.0
        )  # keeps gradients finite
        return torch.where(is_last_step, -pixel_log_mass(x_0, mean_p, decoder_log_variance), kl)
