r"""Improved DDPM's learned range, the only strategy that models the step instead of ``Cov[x_0 | x_t]``.

    Sigma = exp(v log beta_{t|s} + (1 - v) log beta_tilde_{t|s}),   v = (head + 1) / 2

Source: Improved DDPM (arXiv:2102.09672), Eq. 15.  The head is trained on L_vlb with the mean held fixed (their
stop-gradient), so a frozen mean network keeps its quality.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.likelihood.terms import gaussian_kl, pixel_log_mass
from optcov.schedule.levels import per_sample
from optcov.variance.base import HeadFactory, StepModel, TrainedHead


class OwnHead(nn.Module):
    """Uses the half of a network's own output that is ``2 v - 1``, which is the last C channels of its features."""

    def __init__(self, feature_channels: int, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = data_shape[0]

    def forward(self, features: Tensor, network_time: Tensor) -> Tensor:
        """``[B, feature_channels, ...]`` to ``[B, *data_shape]``."""
        return features[:, -self.channels :]


class LearnedRange(TrainedHead, StepModel):
    """A variance between beta_tilde and beta_{t|s}, interpolated in the logarithm; only for DDPM steps (eta = 1).

    Args:
        denoiser: the mean network; if it outputs ``2 v - 1`` itself, neither a head nor a fit is needed.
        head: as in `TrainedHead`; its output is ``2 v - 1``.
    Raises:
        ValueError: if the schedule has only one step, or the data have no grey levels.
    """

    def __init__(self, denoiser: Denoiser, head: HeadFactory) -> None:
        super().__init__(denoiser, OwnHead if getattr(denoiser.network, "learned_sigma", False) else head)
        if denoiser.schedule.num_steps < 2:
            raise ValueError(
                "schedule.num_steps must be at least 2 for var=iddpm (got 1): one step leaves no range between "
                "beta_tilde and beta"
            )
        if denoiser.data_range.grey_level is None and not isinstance(self.head, OwnHead):
            raise ValueError(
                "data_range must have grey levels for var=iddpm (got none): its last step is trained on the mass of a "
                "pixel, so choose another var, such as npr_dpm"
            )

    def transition(self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        v, x_t = (self.head_output(denoiser, prediction) + 1) / 2, prediction.x_t
        log_beta, log_beta_tilde = per_sample(kernel.beta.log(), x_t), per_sample(kernel.lambda_sq.log(), x_t)
        return DiagonalCovariance((v * log_beta + (1 - v) * log_beta_tilde).exp())

    def loss(self, denoiser: Denoiser, prediction: Prediction, target: Tensor) -> Tensor:
        """L_vlb of the full chain's step from ``t`` to ``t - 1/N``, in nats; ``t`` is ``[B]`` on the grid (Eq. 4-7)."""
        schedule, level, x_t = denoiser.schedule, prediction.level, prediction.x_t
        first = 1 / schedule.num_steps
        is_last_step = level.t < 1.5 * first
        # beta_tilde is 0 at the last step; use the previous step's value (their posterior_log_variance_clipped)
        clipped_t = torch.where(is_last_step, level.t + first, level.t)
        clipped = ReverseKernel.from_levels(schedule.levels(clipped_t - first), schedule.levels(clipped_t)).lambda_sq
        kernel = ReverseKernel.from_levels(schedule.levels((level.t - first).clamp(min=0)), level)
        log_beta, log_beta_tilde = per_sample(kernel.beta.log(), x_t), per_sample(clipped.log(), x_t)
        v = (self.head_output(denoiser, prediction) + 1) / 2
        log_variance = v * log_beta + (1 - v) * log_beta_tilde
        x_0 = denoiser.parameterization.x0(x_t, target, level)
        mean_q = kernel.mean(x_0, denoiser.parameterization.eps(x_t, target, level))
        mean_p = kernel.mean(prediction.x0, prediction.eps).detach()
        kl = gaussian_kl(mean_q, log_beta_tilde, mean_p, log_variance)
        # only the last step is decoded; elsewhere a variance of 1 keeps the gradient finite
        decoder_log_variance = torch.where(per_sample(is_last_step, x_t).bool(), log_variance, 0.0)
        decoder = -pixel_log_mass(x_0, mean_p, decoder_log_variance, denoiser.data_range)
        return torch.where(is_last_step, decoder, kl)
