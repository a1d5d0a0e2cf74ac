"""Which covariance guided steps want: samples in few steps against those of the same guided chain in many.

On three overlapping classes, with exact means and (the diagonals of) exact covariances, so that C alone is at stake:
the guided C_u + w (C_c - C_u), that of the class, that of no class, or none.  The Frechet distance of each class to the
chain of 200 steps, averaged over classes, in 1e-4.
"""

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance, Guided
from optcov.kernel import ReverseKernel
from optcov.labels import cycle_labels
from optcov.metric import frechet_distance
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDPMSampler, NoiseStream
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde

WEIGHT, COUNT = 3.0, 30_000
SCHEDULE = LinearSchedule(1000)
MIXTURE = GaussianMixture(
    [[-0.5, 0.2], [0.4, 0.5], [0.3, -0.6]],
    [[[0.1, 0.0], [0.0, 0.06]], [[0.08, 0.0], [0.0, 0.05]], [[0.05, 0.0], [0.0, 0.12]]],
    [0.5, 0.3, 0.2],
)
LABELS = cycle_labels([0, 1, 2], 3, COUNT)
DENOISER = Denoiser(OracleNetwork((2,), MIXTURE, SCHEDULE, num_classes=3), SCHEDULE)


class Exact(VarianceStrategy):
    """The diagonal of ``Cov[x_0 | x_t, y]``."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor) -> Covariance:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return DiagonalCovariance(
            MIXTURE.posterior(x_t, alpha, sigma, prediction.labels)[1].diagonal(dim1=1, dim2=2).to(x_t.dtype)
        )


class Part(Exact):
    """The same of one of the answers that guidance mixes."""

    def __init__(self, denoiser: Denoiser, part: str) -> None:
        super().__init__(denoiser)
        self.part = part

    def transition(
        self, kernel: ReverseKernel, denoiser: Denoiser, prediction: Prediction, x_t: Tensor, t: Tensor
    ) -> Covariance:
        return super().transition(kernel, denoiser, getattr(prediction, self.part), x_t, t)


def draw(strategy: VarianceStrategy, steps: int, seed: int) -> Tensor:
    guided = Guided(DENOISER, ClassifierFreeGuidance(DENOISER, weight=WEIGHT), LABELS)
    times = EvenTrajectory().times(SCHEDULE, steps)
    return DDPMSampler(steps, clip_x0=False, cut=None).sample(
        guided, strategy, times, NoiseStream(seed, range(COUNT), (2,))
    )


def distance(samples: Tensor, others: Tensor) -> float:
    """In 1e-4, averaged over classes."""
    pairs = [(samples[LABELS.eq(k)].double(), others[LABELS.eq(k)].double()) for k in range(3)]
    found = [float(frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))) for a, b in pairs]
    return 1e4 * sum(found) / 3


def main() -> None:
    _, guided = ClassifierFreeGuidance(DENOISER, weight=WEIGHT).bind(DENOISER, Exact(DENOISER), LABELS)
    strategies = {
        "C_u + w (C_c - C_u)": guided,
        "C_c": Part(DENOISER, "end"),
        "C_u": Part(DENOISER, "start"),
        "0 (beta_tilde)": BetaTilde(DENOISER),
    }
    reference = draw(guided, 200, seed=5)
    print(f"w = {WEIGHT:g}; between two draws of 200 steps: {distance(draw(guided, 200, seed=9), reference):.1f}")
    for steps in (10, 25):
        scores = {name: distance(draw(strategy, steps, seed=0), reference) for name, strategy in strategies.items()}
        print(f"{steps:3d} steps", *(f"{name} {score:7.1f}" for name, score in scores.items()), sep="   ")


if __name__ == "__main__":
    main()
