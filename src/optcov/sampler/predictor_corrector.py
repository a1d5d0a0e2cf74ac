r"""Predictor-corrector sampling: a step of the reverse kernel, then Langevin steps at the new time.

    x <- x + epsilon g + sqrt(2 epsilon) z,    g = grad log q_s(x) = -e / sigma_s
    epsilon = 2 alpha_{s|r}^2 (snr ||z|| / ||g||)^2,    r the next time below s

Source: Score SDEs (arXiv:2011.13456), Algorithms 3 and 5, whose 1 - beta_i is alpha_{s|r}^2 at stride 1.  The norms are
those of each sample, not of a batch, so that a sample does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.broadcast import per_sample
from optcov.denoiser import Denoiser
from optcov.sampler.ancestral import DDPMSampler
from optcov.sampler.noise import NoiseStream


class PredictorCorrectorSampler(DDPMSampler):
    """Ancestral steps with any ``var``, each but the last followed by annealed Langevin dynamics.

    Args:
        num_steps: K, the number of ancestral steps.
        snr: signal-to-noise ratio of a Langevin step, positive; 0.16 in the paper.
        corrector_steps: Langevin steps after each ancestral one, a network call each; 0 leaves DDPM.
        clip_x0, cut: as in :class:`DDPMSampler`.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_steps: int = 50,
        snr: float = 0.16,
        corrector_steps: int = 1,
        clip_x0: bool = True,
        cut: float | None = 2.0,
    ) -> None:
        super().__init__(num_steps, clip_x0, cut)
        if not snr > 0:
            raise ValueError(f"sampler.snr = {snr} is no signal-to-noise ratio: give a positive number such as 0.16")
        if corrector_steps < 0:
            raise ValueError(f"sampler.corrector_steps = {corrector_steps} is no number of steps: give 0, 1 or more")
        self.snr, self.corrector_steps = snr, corrector_steps

    def network_calls(self, times: Tensor) -> int:
        return len(times) + (len(times) - 1) * self.corrector_steps

    def correct(
        self, denoiser: Denoiser, x_s: Tensor, step: int, times: Sequence[Tensor], noise: NoiseStream
    ) -> Tensor:
        schedule, s = denoiser.schedule, times[step - 1]
        alpha_below = schedule.alpha(times[step - 2]) if step > 1 else 1.0
        sigma, kept = schedule.sigma(s), (schedule.alpha(s) / alpha_below) ** 2
        for _ in range(self.corrector_steps):
            score = -denoiser(x_s, s).eps / per_sample(sigma, x_s)
            z = noise.draw()
            length = score.flatten(1).norm(dim=1).double()
            size = 2 * kept * (self.snr * z.flatten(1).norm(dim=1).double() / length) ** 2
            size = torch.where(length > 0, size, 0.0)  # a network that is yet to learn may answer 0: no step
            x_s = x_s + per_sample(size, x_s) * score + per_sample((2 * size).sqrt(), x_s) * z
        return x_s
