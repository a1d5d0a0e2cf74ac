"""Seconds of a Frechet distance in 2048 dimensions beside scipy's sqrtm: python benchmarks/frechet.py [dimensions]"""

import sys
import time

import numpy as np
import scipy.linalg
import torch

from optcov.metric import frechet_distance
from optcov.metric.moments import Moments

if __name__ == "__main__":
    torch.set_num_threads(1)
    dim = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    generator = torch.Generator().manual_seed(0)
    statistics = []
    started = time.perf_counter()
    for scale in (1.0, 1.1):
        moments = Moments()
        for _ in range(10):
            moments.update(scale * torch.randn(1000, dim, generator=generator))
        statistics.append(moments.mean_and_covariance())
    print(f"moments of 2 x 10,000 features: {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    ours = float(frechet_distance(*statistics[0], *statistics[1]))
    print(f"frechet_distance: {time.perf_counter() - started:.1f} s")
    (mean_1, cov_1), (mean_2, cov_2) = ((m.numpy(), c.numpy()) for m, c in statistics)
    started = time.perf_counter()
    root = np.real(scipy.linalg.sqrtm(cov_1 @ cov_2))
    theirs = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * root)
    print(
        f"scipy.linalg.sqrtm: {time.perf_counter() - started:.1f} s; relative difference {abs(ours / theirs - 1):.1e}"
    )
