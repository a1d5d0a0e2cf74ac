"""Covariances as objects, which strategies return and samplers and likelihoods use."""

from optcov.covariance.base import Covariance
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.covariance.full import FullCovariance
from optcov.covariance.isotropic import IsotropicCovariance

__all__ = ["Covariance", "DiagonalCovariance", "FullCovariance", "IsotropicCovariance"]
