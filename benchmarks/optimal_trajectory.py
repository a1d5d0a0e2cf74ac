"""Seconds of the dynamic programme for N = 1000 and every K at once: python benchmarks/optimal_trajectory.py"""

import time

import torch

from optcov.schedule import LinearSchedule
from optcov.trajectory.optimal import step_costs
from optcov.trajectory.shortest import ShortestPaths

if __name__ == "__main__":
    torch.set_num_threads(1)
    schedule = LinearSchedule(1000)
    variance = torch.linspace(0.01, 0.25, 1000, dtype=torch.float64)
    for _ in range(3):
        started = time.perf_counter()
        cost = step_costs(schedule, variance)
        costed = time.perf_counter()
        paths = ShortestPaths(cost)
        every = [paths.nodes(k) for k in range(2, 1001)]
        ended = time.perf_counter()
        print(f"costs {costed - started:.2f} s, all {len(every)} paths {ended - costed:.2f} s")
