r"""A denoiser and its covariance for deepinv's diffusion samplers (deepinv 0.5), which take any modules of their form.

    from deepinv.sampling import PosteriorDiffusion, VarianceExplodingDiffusion
    from optcov.deepinv import ConditionedFidelity, MeanDenoiser

    fidelity, sde = ConditionedFidelity(denoiser, strategy), VarianceExplodingDiffusion(sigma_max=50)
    samples = PosteriorDiffusion(fidelity, MeanDenoiser(denoiser), sde, solver)(y, physics)

deepinv's state is ``x = x_0 + sigma z`` with x_0 on [0, 1], and a sampler adds ``grad log p(y | x)`` to the score of x.
A strategy gives it without a gradient of the network: for ``p(x_0 | x) = N(m, C)``, the mean moves from m to m' (see
`optcov.inverse.conditioning`), and by Tweedie's formula the score moves by

    grad log p(y | x) = (m' - m) / sigma^2

The sampler itself draws its own noise, not that of C', so that it takes more steps than `optcov.restore`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optcov.denoiser import Denoiser, Prediction
from optcov.errors import must
from optcov.inverse import PairOperator, condition
from optcov.schedule.levels import per_sample
from optcov.variance.base import CovarianceModel, VarianceStrategy
from optcov.variance.fixed import BetaTilde


class MeanDenoiser(nn.Module):
    """The mean network as a denoiser of deepinv: ``(x, sigma) -> E[x_0|x]``.

    Args:
        denoiser: from `optcov.load`; its data have a range, which becomes [0, 1].
    Raises:
        ConfigError: if they have none.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        unit = torch.tensor([0.0, 1.0]).reshape(2, *(1 for _ in denoiser.data_shape)).expand(2, *denoiser.data_shape)
        low, high = denoiser.data_range.from_unit(2 * unit - 1).double()
        self.width = float((high - low).flatten()[0])
        if denoiser.data_range.low is None or not bool((high - low == self.width).all()):
            what = "the same finite interval for all channels, which deepinv maps to [0, 1]"
            raise must("data_range", what, denoiser.data_range, "give it to optcov.load")
        self.low: Tensor
        self.register_buffer("low", low, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        """``E[x_0|x]`` on [0, 1].

        Args:
            x: ``[B, C, H, W]``, images on [0, 1] with noise.
            sigma: standard deviation of the noise, a number or one for each sample, of any shape.
            args, kwargs: ignored.
        Raises:
            ConfigError: if the noise is more than the network knows.
        """
        return (self.predict(x, sigma).x0 - self.low.to(x)) / self.width

    def predict(self, x: Tensor, sigma: Tensor | float) -> Prediction:
        """The prediction in the network's own range; the arguments are those of `forward`."""
        size = self.width * torch.as_tensor(sigma, dtype=torch.float64, device=x.device).flatten()
        size = size[0] if len(size) == 1 else size
        schedule = self.denoiser.schedule
        ends = torch.tensor([1 / schedule.num_steps, 1.0], dtype=torch.float64, device=x.device)
        first, last = (-schedule.log_snr(ends) / 2).exp()  # sigma_t / alpha_t
        if bool((size > last * (1 + 1e-6)).any()):
            largest = float(last) / self.width
            raise must("sigma", f"at most {largest:.4g}, the network's largest", float(size.max()) / self.width,
                       "start the sampler there")  # fmt: skip
        size = size.clamp(min=float(first))  # less noise than at the first step is taken for as much
        level = self.denoiser.levels(schedule.time(-2 * size.log()))
        u = self.low.to(x) + self.width * x
        found: Prediction = self.denoiser(per_sample(level.alpha, u) * u, level)
        return found


class ConditionedFidelity(nn.Module):
    """The data-fidelity of a strategy: its ``grad`` is ``-grad log p(y | x)``, without a gradient of the network.

    Args:
        denoiser: as in `MeanDenoiser`.
        strategy: from `optcov.fit`; a model of C.
        noise: standard deviation of the noise in y, positive; None for that of the physics' Gaussian noise model.
        solver_steps: as in `optcov.restore`.
    Raises:
        ConfigError: if the strategy has no C.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        noise: float | None = None,
        solver_steps: int = 50,
    ) -> None:
        super().__init__()
        if isinstance(strategy, BetaTilde) or not isinstance(strategy, CovarianceModel):
            raise must("strategy", "a model of Cov[x_0|x_t]", type(strategy).__name__, "choose such as low_rank")
        self.mean, self.strategy = MeanDenoiser(denoiser), strategy
        self.noise, self.solver_steps = noise, solver_steps

    @torch.no_grad()
    def grad(self, x: Tensor, y: Tensor, physics: Any, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        """``-(m' - m) / sigma^2``, ``[B, C, H, W]``.

        Args:
            x, sigma: as in `MeanDenoiser.forward`.
            y: measurements of images on [0, 1], ``[B, *measurement]``.
            physics: deepinv's ``LinearPhysics``, or another object with ``A`` and ``A_adjoint``.
            args, kwargs: ignored.
        Raises:
            ConfigError: if there is no noise.
        """
        assert isinstance(self.strategy, CovarianceModel)
        denoiser, width = self.mean.denoiser, self.mean.width
        noise = self.noise if self.noise is not None else getattr(getattr(physics, "noise_model", None), "sigma", None)
        if noise is None or not float(noise) > 0:
            raise must(
                "noise", "above 0", noise, "give the physics deepinv's GaussianNoise, or ConditionedFidelity noise="
            )
        own = self.mean.predict(x.float(), sigma)
        prior = self.strategy.bounded_covariance(denoiser, own)
        scale = torch.tensor(1 / width**2, dtype=torch.float64, device=x.device)
        m = (own.x0 - self.mean.low.to(own.x0)) / width
        operator = PairOperator.of(denoiser.data_shape, physics)
        variance = torch.tensor(float(noise) ** 2, dtype=torch.float64)
        found = condition(
            prior.affine(scale, torch.zeros_like(scale)), y.to(m) - operator(m), operator, variance, self.solver_steps
        )
        size = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).flatten()
        return -(found.shift / per_sample(size[0] ** 2 if len(size) == 1 else size**2, found.shift)).to(x)
