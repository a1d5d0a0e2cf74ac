"""Noise schedules: the amplitudes of signal and noise at each time."""

from optcov.schedule.base import NoiseSchedule
from optcov.schedule.betas import BetaSchedule, FunctionSchedule
from optcov.schedule.cosine import CosineSchedule
from optcov.schedule.flow import FlowSchedule
from optcov.schedule.levels import NoiseLevels
from optcov.schedule.linear import LinearSchedule
from optcov.schedule.sqrt_linear import SqrtLinearSchedule
from optcov.schedule.ve import VESchedule
from optcov.schedule.vp import DiscreteSchedule, VPSchedule
from optcov.schedule.vp_sde import VPSDESchedule

__all__ = [
    "BetaSchedule",
    "CosineSchedule",
    "DiscreteSchedule",
    "FlowSchedule",
    "FunctionSchedule",
    "LinearSchedule",
    "NoiseLevels",
    "NoiseSchedule",
    "SqrtLinearSchedule",
    "VESchedule",
    "VPSDESchedule",
    "VPSchedule",
]
