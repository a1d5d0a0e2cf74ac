"""The posterior covariances that azula (MIT) offers, where it is installed.

azula's networks answer with a mean alone.  Its JFPS guidance and its `GaussianDenoiser` take the covariance S of the
data, of one of the forms of `azula.linalg.covariance`, whose operations give what x_t leaves of Gaussian data:

    C = (S^{-1} + (alpha_t^2 / sigma_t^2) I)^{-1}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from optcov.covariance import Covariance, FullCovariance
from optcov.covbench.truths import Unavailable
from optcov.denoiser import Denoiser, Prediction
from optcov.errors import must
from optcov.variance.base import Calibrated

RANK, ITERATIONS = 8, 20  # of the diagonal plus low rank: the rank of optcov's, and steps of EM
PRIORS: dict[str, Callable[[Any, Tensor], Any]] = {  # (azula.linalg.covariance, data [n, H, W]) -> S
    "isotropic": lambda forms, data: forms.IsotropicCovariance.from_data(data),
    "diagonal": lambda forms, data: forms.DiagonalCovariance.from_data(data),
    "low_rank": lambda forms, data: forms.DPLRCovariance.from_data(data, rank=RANK, iterations=ITERATIONS),
    "kronecker": lambda forms, data: forms.KroneckerCovariance.from_data(data),
    "full": lambda forms, data: forms.FullCovariance.from_data(data),
}


class AzulaPosterior(Calibrated):
    """What x_t leaves of Gaussian data, by azula.

    Args:
        denoiser: of grey images.
        kind: the form of S, a key of `PRIORS`.
    """

    num_images = 4000

    def __init__(self, denoiser: Denoiser, kind: str) -> None:
        super().__init__(denoiser)
        self.kind, self.forms, self.prior = kind, forms(), None

    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        self.prior = PRIORS[self.kind](self.forms, torch.cat(list(batches)).double().squeeze(1))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level, x_t = prediction.level, prediction.x_t
        assert self.prior is not None
        noise = self.forms.IsotropicCovariance(level.sigma**2 / level.alpha**2)
        posterior = (self.prior.inv + noise.inv).inv
        unit = torch.eye(x_t[0].numel(), dtype=torch.float64)
        matrix = posterior(unit.reshape(-1, *x_t.shape[2:])).reshape(unit.shape)
        return FullCovariance(matrix.expand(len(x_t), -1, -1).to(x_t.dtype), x_t.shape[1:])


def forms() -> Any:
    """azula's module of covariances.

    Raises:
        Unavailable: if azula is not installed.
    """
    try:
        return import_module("azula.linalg.covariance")
    except ImportError as error:
        remedy = "pip install --no-deps azula einops, or leave its estimators out"
        raise Unavailable(str(must("azula", "installed for its estimators", error, remedy))) from error


def azula_prior(kind: str, denoiser: Denoiser, images: Tensor) -> AzulaPosterior:
    """An estimator of covbench, once its kind is given."""
    posterior = AzulaPosterior(denoiser, kind)
    posterior.calibrate(denoiser, [images])
    return posterior
