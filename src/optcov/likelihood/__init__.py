"""Likelihood: the variational bound and its terms, and the density defined by the probability-flow ODE."""

from optcov.likelihood.ode import ProbabilityFlow
from optcov.likelihood.terms import LogMass, gaussian_kl, gaussian_kl_between, pixel_log_mass, pixel_log_mass_tanh
from optcov.likelihood.variational import DensityBound, VariationalBound

__all__ = [
    "DensityBound",
    "LogMass",
    "ProbabilityFlow",
    "VariationalBound",
    "gaussian_kl",
    "gaussian_kl_between",
    "pixel_log_mass",
    "pixel_log_mass_tanh",
]
