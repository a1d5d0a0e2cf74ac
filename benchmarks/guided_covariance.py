"""Shows which covariance guided steps need: compares samples from few steps with those of the same chain in many steps.

The data are three overlapping classes with exact means and (the diagonals of) exact covariances, so that only C
differs: it is the guided C_u + w (C_c - C_u), that of the class, that of no class, or none.  The score is the Frechet
distance of each class to the chain of 200 steps, averaged over classes, in units of 1e-4.
"""

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import ClassifierFreeGuidance
from optcov.labels import cycle_labels
from optcov.metric import frechet_distance
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.sampler import DDPMSampler, NoiseStream
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import Closed, VarianceStrategy
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
GUIDANCE = ClassifierFreeGuidance(DENOISER, weight=WEIGHT)


class Exact(Closed):
    """The diagonal of ``Cov[x_0 | x_t, y]``.

    Args:
        denoiser: the mean network.
        labels: y, which replaces that of the prediction, so that guidance has nothing to mix; None for that of each
            prediction.
    """

    def __init__(self, denoiser: Denoiser, labels: Tensor | None = None) -> None:
        super().__init__(denoiser)
        self.labels = labels

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t, level = prediction.x_t, prediction.level
        labels = prediction.condition if self.labels is None else self.labels
        covariance = MIXTURE.posterior(x_t, level.alpha, level.sigma, labels)[1]
        return DiagonalCovariance(covariance.diagonal(dim1=1, dim2=2).to(x_t.dtype))


def draw(strategy: VarianceStrategy, steps: int, seed: int) -> Tensor:
    times, noise = EvenTrajectory().times(SCHEDULE, steps), NoiseStream(seed, range(COUNT), (2,))
    sampler = DDPMSampler(steps, clip_x0=False, cut=None)
    return sampler.sample(DENOISER, strategy, times, noise, guidance=GUIDANCE, condition=LABELS)


def distance(samples: Tensor, others: Tensor) -> float:
    """Frechet distance in units of 1e-4, averaged over classes."""
    pairs = [(samples[LABELS.eq(k)].double(), others[LABELS.eq(k)].double()) for k in range(3)]
    found = [float(frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))) for a, b in pairs]
    return 1e4 * sum(found) / 3


def main() -> None:
    guided = Exact(DENOISER)
    strategies = {
        "C_u + w (C_c - C_u)": guided,
        "C_c": Exact(DENOISER, LABELS),
        "C_u": Exact(DENOISER, torch.full_like(LABELS, 3)),  # the null label
        "0 (beta_tilde)": BetaTilde(DENOISER),
    }
    reference = draw(guided, 200, seed=5)
    print(f"w = {WEIGHT:g}; between two draws of 200 steps: {distance(draw(guided, 200, seed=9), reference):.1f}")
    for steps in (10, 25):
        scores = {name: distance(draw(strategy, steps, seed=0), reference) for name, strategy in strategies.items()}
        print(f"{steps:3d} steps", *(f"{name} {score:7.1f}" for name, score in scores.items()), sep="   ")


if __name__ == "__main__":
    main()
