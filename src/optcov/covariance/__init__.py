"""Covariances as objects: what a strategy returns, and all that samplers and likelihoods ask of it."""

from optcov.covariance.base import Covariance
from optcov.covariance.diagonal import DiagonalCovariance
from optcov.covariance.full import FullCovariance
from optcov.covariance.isotropic import IsotropicCovariance

__all__ = ["Covariance", "DiagonalCovariance", "FullCovariance", "IsotropicCovariance"]
