"""Samplers: which update takes x_t to x_s."""

from optcov.sampler.ancestral import DDIMSampler, DDPMSampler
from optcov.sampler.base import Sampler, sample
from optcov.sampler.noise import NoiseStream

__all__ = ["DDIMSampler", "DDPMSampler", "NoiseStream", "Sampler", "sample"]
