"""DPM-Solver++, multistep, for the ODE up to order 3 (2M, 3M) and for the reverse SDE (2M SDE).

Source: DPM-Solver++ (arXiv:2211.01095), Algorithm 2 and Sec. 5.  The formula of order 3 integrates the parabola through
three predictions exactly; the published code weights the second difference by half as much, which gives only order 2.
"""

from __future__ import annotations

from optcov.ranges import NonNegative, Order, Steps
from optcov.sampler.multistep import AdamsSampler
from optcov.sampler.share import NoiseChoice


class DPMSolverPPSampler(AdamsSampler):
    """Multistep method in the data prediction.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        order: 1 (DDIM; with ``sde``, DDPM with var=beta_tilde), 2 or 3; at most K.
        sde: solve the reverse SDE, with fresh noise in each step, instead of the probability-flow ODE.
        clip_x0: clamp the predicted x_0 to the data's range.
        noise, cut: as in `MultistepSampler`.
    Raises:
        ValueError: if the order is none of these, or above K, or there is other noise with ``sde``.
    """

    def __init__(
        self,
        num_steps: Steps = 50,
        order: Order = 2,
        sde: bool = False,
        clip_x0: bool = False,
        noise: NoiseChoice = "none",
        cut: NonNegative | None = 1.0,
    ) -> None:
        super().__init__(num_steps, order, sde, clip_x0, noise, cut)
