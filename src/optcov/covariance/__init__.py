"""Covariance objects: strategies return them, and samplers and likelihoods use them."""

from optcov.covariance.base import Covariance
from optcov.covariance.bases import DCT, PCA, Basis, Hartley
from optcov.covariance.basis import BasisCovariance
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.covariance.full import FullCovariance
from optcov.covariance.isotropic import IsotropicCovariance
from optcov.covariance.kronecker import KroneckerCovariance
from optcov.covariance.low_rank import LowRankCovariance
from optcov.covariance.matrix_free import MatrixFreeCovariance
from optcov.covariance.skewed import SkewedCovariance
from optcov.covariance.total import CongruentCovariance, SumCovariance

__all__ = [
    "DCT",
    "PCA",
    "Basis",
    "BasisCovariance",
    "CongruentCovariance",
    "Covariance",
    "DiagonalCovariance",
    "FullCovariance",
    "Hartley",
    "IsotropicCovariance",
    "KroneckerCovariance",
    "LowRankCovariance",
    "MatrixFreeCovariance",
    "SkewedCovariance",
    "SumCovariance",
]
