"""The entries of covbench: an estimator is a function ``(denoiser, images) -> strategy``.

It is given an exact or a planted denoiser and 4000 images of the task.  Only those called exact see the exact C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance, IsotropicCovariance
from optcov.covbench.azula import PRIORS, azula_prior
from optcov.covbench.tasks import Node, TruthNetwork
from optcov.denoiser import Denoiser, Prediction
from optcov.errors import did_you_mean, must
from optcov.variance.base import Closed, CovarianceModel, VarianceStrategy
from optcov.variance.jacobian import check_signal, product
from optcov.variance.likely import posterior_variance
from optcov.verbs import fit
from optcov.wording import first_line

Estimator = Callable[[Denoiser, Tensor], VarianceStrategy]
TRAINED = {"steps": 300}  # of 64 images


class Exact(Closed):
    """The truth, or its diagonal: the yardstick."""

    def __init__(self, denoiser: Denoiser, diagonal: bool = False) -> None:
        super().__init__(denoiser)
        self.diagonal = diagonal

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        network, level, x_t = denoiser.network, prediction.level, prediction.x_t
        assert isinstance(network, TruthNetwork)
        exact = network.truth.posterior(x_t.double().flatten(1), level.alpha, level.sigma)[1]
        node = Node(level, x_t, exact, network.error(x_t, level).flatten(1))
        matrix = node.about_the_mean.to(x_t.dtype)
        if self.diagonal:
            return DiagonalCovariance(matrix.diagonal(dim1=1, dim2=2).reshape(x_t.shape))
        return FullCovariance(matrix, x_t.shape[1:])

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return self.covariance(denoiser, prediction)  # an exact C is within all bounds


class PiGDM(Closed):
    """``sigma_t^2 / (sigma_t^2 + alpha_t^2) I``, exact for white data of variance 1 (Pi-GDM, Song et al. 2023)."""

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        variance = posterior_variance(1.0, prediction.level).to(prediction.x_t.dtype)
        return IsotropicCovariance(variance.expand(len(prediction.x_t)), prediction.x_t.shape[1:])


class RowSums(Closed):
    """``diag(C_J 1)``, the row sums of the Jacobian's covariance, by one product (TMPD, arXiv:2310.06721)."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        check_signal(denoiser)

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return DiagonalCovariance(product(denoiser, prediction, torch.ones_like(prediction.x_t)))


def fitted(name: str, **settings: Any) -> Estimator:
    """An estimator by the name of its option of ``var``.

    Args:
        name: such as ``low_rank``.
        settings: as in `optcov.fit`, such as ``rank=8`` or ``steps=300``.
    """
    return partial(_fitted, name, settings)


def _fitted(name: str, settings: dict[str, Any], denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
    return fit(name, denoiser, images, progress=False, **settings)


def _exact(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
    return Exact(denoiser)


def _exact_diagonal(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
    return Exact(denoiser, diagonal=True)


def _pi_gdm(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
    return PiGDM(denoiser)


def _tmpd(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
    return RowSums(denoiser)


ESTIMATORS: dict[str, Estimator] = {
    "exact": _exact,
    "exact_diagonal": _exact_diagonal,
    "beta": fitted("beta"),
    "pi_gdm": _pi_gdm,
    "tmpd": _tmpd,
    "data_cov": fitted("data_cov"),
    "analytic": fitted("analytic", num_times=50),
    "analytic_diag": fitted("analytic_diag", num_times=50),
    "analytic_imperfect": fitted("analytic_imperfect", num_times=50),
    "analytic_imperfect_diag": fitted("analytic_imperfect_diag", num_times=50),
    "dct": fitted("dct", num_times=50),
    "npr_dpm": fitted("npr_dpm", **TRAINED),
    "sn_dpm": fitted("sn_dpm", **TRAINED),
    "gms": fitted("gms", **TRAINED),
    "nll": fitted("nll", **TRAINED),
    "ocm": fitted("ocm", **TRAINED),
    "ocm_corrected": fitted("ocm_corrected", **TRAINED),
    "dct_head": fitted("dct_head", **TRAINED),
    "kdct": fitted("kdct", **TRAINED),
    "low_rank": fitted("low_rank", rank=8, **TRAINED),
    "jacobian": fitted("jacobian"),
    "jacobian_corrected": fitted("jacobian_corrected", **TRAINED),
    **{f"azula_{kind}": partial(azula_prior, kind) for kind in PRIORS},
}


def estimator_of(name: str) -> Estimator:
    """The estimator of a name, or the function of ``module:function``.

    Raises:
        ConfigError: if there is none; the message has the nearest names.
    """
    module, colon, function = name.partition(":")
    if not colon:
        if name not in ESTIMATORS:
            remedy = did_you_mean(name, ESTIMATORS, "list them by --help, or give module:function")
            raise must("estimator", "an estimator of covbench", name, remedy)
        return ESTIMATORS[name]
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise must("estimator", "module:function of a module that imports", name, first_line(error)) from error
    if not callable(found):
        names = [each for each, value in vars(sys.modules[module]).items() if callable(value)]
        raise must(
            "estimator", "module:function", name, did_you_mean(function, names, f"{module} has no such function")
        )
    estimator: Estimator = found
    return estimator


def made(name: str, estimator: Estimator, denoiser: Denoiser, images: Tensor) -> CovarianceModel:
    """The strategy of an estimator, in float64.

    Raises:
        ConfigError: if it is no model of C.
    """
    strategy = estimator(denoiser, images)
    if not isinstance(strategy, CovarianceModel):
        what = "a function that returns a CovarianceModel, a strategy that has a C"
        raise must(f"estimator {name}", what, type(strategy).__name__, "see optcov.variance.base")
    return strategy.double().eval()
