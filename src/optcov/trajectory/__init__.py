"""Trajectories: which times a sampler visits."""

from optcov.trajectory.base import Trajectory
from optcov.trajectory.ddim_stride import DDIMStrideTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.optimal import OptimalTrajectory
from optcov.trajectory.optimal_nll import OptimalNLLTrajectory
from optcov.trajectory.quadratic import QuadraticTrajectory

__all__ = [
    "DDIMStrideTrajectory",
    "EvenTrajectory",
    "OptimalNLLTrajectory",
    "OptimalTrajectory",
    "QuadraticTrajectory",
    "Trajectory",
]
