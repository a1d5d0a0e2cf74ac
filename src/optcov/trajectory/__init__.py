"""Trajectories: the times that a sampler visits."""

from optcov.trajectory.base import GridTrajectory, Trajectory
from optcov.trajectory.ddim_stride import DDIMStrideTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.karras import KarrasTrajectory
from optcov.trajectory.log_snr import LogSNRTrajectory
from optcov.trajectory.optimal import OptimalTrajectory
from optcov.trajectory.optimal_nll import OptimalNLLTrajectory
from optcov.trajectory.quadratic import QuadraticTrajectory

__all__ = [
    "DDIMStrideTrajectory",
    "EvenTrajectory",
    "GridTrajectory",
    "KarrasTrajectory",
    "LogSNRTrajectory",
    "OptimalNLLTrajectory",
    "OptimalTrajectory",
    "QuadraticTrajectory",
    "Trajectory",
]
