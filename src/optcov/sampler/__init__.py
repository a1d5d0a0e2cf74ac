"""Samplers: the update rules that take x_t to x_s."""

from optcov.sampler.ancestral import DDIMSampler, DDPMSampler
from optcov.sampler.base import Model, Sampler, State, batches, sample
from optcov.sampler.deis import DEISSampler
from optcov.sampler.dpm_solver import DPMSolverSampler
from optcov.sampler.dpm_solver_pp import DPMSolverPPSampler
from optcov.sampler.euler import EulerSampler
from optcov.sampler.euler_maruyama import EulerMaruyamaSampler
from optcov.sampler.heun import HeunSampler
from optcov.sampler.inversion import invert, slerp
from optcov.sampler.ipndm import IPNDMSampler
from optcov.sampler.noise import NoiseStream
from optcov.sampler.predictor_corrector import PredictorCorrectorSampler
from optcov.sampler.progress import ImageBar
from optcov.sampler.unipc import UniPCSampler

__all__ = [
    "DDIMSampler",
    "DDPMSampler",
    "DEISSampler",
    "DPMSolverPPSampler",
    "DPMSolverSampler",
    "EulerMaruyamaSampler",
    "EulerSampler",
    "HeunSampler",
    "IPNDMSampler",
    "ImageBar",
    "Model",
    "NoiseStream",
    "PredictorCorrectorSampler",
    "Sampler",
    "State",
    "UniPCSampler",
    "batches",
    "invert",
    "sample",
    "slerp",
]
