"""Noise schedules: how much signal and how much noise there is at each time."""

from optcov.schedule.base import DiscreteSchedule, NoiseSchedule
from optcov.schedule.cosine import CosineSchedule
from optcov.schedule.linear import LinearSchedule
from optcov.schedule.sqrt_linear import SqrtLinearSchedule
from optcov.schedule.vp_sde import VPSDESchedule

__all__ = [
    "CosineSchedule",
    "DiscreteSchedule",
    "LinearSchedule",
    "NoiseSchedule",
    "SqrtLinearSchedule",
    "VPSDESchedule",
]
