"""Trajectories: which times a sampler visits."""

from optcov.trajectory.base import Trajectory
from optcov.trajectory.ddim_stride import DDIMStrideTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.quadratic import QuadraticTrajectory

__all__ = ["DDIMStrideTrajectory", "EvenTrajectory", "QuadraticTrajectory", "Trajectory"]
