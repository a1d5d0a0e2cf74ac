"""Trajectories: the times that a sampler visits."""

from optcov.trajectory.base import GridTrajectory, Trajectory
from optcov.trajectory.ddim_stride import DDIMStrideTrajectory
from optcov.trajectory.even import EvenTrajectory
from optcov.trajectory.karras import KarrasTrajectory
from optcov.trajectory.leading import LeadingTrajectory
from optcov.trajectory.learned import LearnedTrajectory
from optcov.trajectory.linspace import LinspaceTrajectory
from optcov.trajectory.listed import ListTrajectory
from optcov.trajectory.log_snr import LogSNRTrajectory
from optcov.trajectory.optimal import OptimalTrajectory
from optcov.trajectory.optimal_nll import OptimalNLLTrajectory
from optcov.trajectory.power import PowerTrajectory
from optcov.trajectory.quadratic import QuadraticTrajectory
from optcov.trajectory.trailing import TrailingTrajectory

__all__ = [
    "DDIMStrideTrajectory",
    "EvenTrajectory",
    "GridTrajectory",
    "KarrasTrajectory",
    "LeadingTrajectory",
    "LearnedTrajectory",
    "LinspaceTrajectory",
    "ListTrajectory",
    "LogSNRTrajectory",
    "OptimalNLLTrajectory",
    "OptimalTrajectory",
    "PowerTrajectory",
    "QuadraticTrajectory",
    "TrailingTrajectory",
    "Trajectory",
]
