"""Speed of Gamma_t, the dynamic programme for optimal trajectories, and the Frechet distance in 2048 dimensions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, Settings, alternate
from optcov.denoiser import Denoiser
from optcov.metric import frechet_distance
from optcov.metric.moments import Moments
from optcov.model import UNet
from optcov.schedule import LinearSchedule
from optcov.trajectory.optimal import step_costs
from optcov.trajectory.shortest import ShortestPaths
from optcov.variance.analytic import Analytic


def gamma(settings: Settings) -> Iterator[Row]:
    """Gamma_t for 1,000 times from 16 digits, compared with a network call for each time (Analytic-DPM's code)."""
    device = settings.device
    torch.manual_seed(0)
    digits, count = (4, 25) if settings.quick else (16, 1000)
    denoiser = Denoiser(UNet((1, 8, 8)), LinearSchedule(count)).to(device).eval()
    if device == "cpu":
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(digits, 1, 8, 8, device=device) * 2 - 1
    strategy = Analytic(denoiser, num_images=digits)

    @torch.no_grad()
    def time_by_time() -> Tensor:
        found = []
        for level in denoiser.levels(denoiser.schedule.grid(device)):
            eps = torch.randn_like(images)
            found.append(denoiser(denoiser.diffuse(images, eps, level), level).eps.square().mean())
        return torch.stack(found)

    turns = {"ours": lambda: strategy.calibrate(denoiser, [images]), "peer": time_by_time}
    row = alternate(turns, settings).row("ours", "peer", "Gamma_t", f"{digits} digits, small U-Net", count, "times/s")
    row.note = "the peer calls the network time by time"
    yield row


def trajectory(settings: Settings) -> Iterator[Row]:
    """The best path of every length K of N = 500 times, compared with loops over both (Analytic-DPM's code)."""
    count = 50 if settings.quick else 500
    variance = torch.linspace(0.01, 0.25, count, dtype=torch.float64)
    cost = step_costs(LinearSchedule(count), variance)

    def loops() -> list[list[int]]:
        table = cost.numpy()
        last = len(table) - 1
        best = [np.full(last + 1, np.inf)]
        best[0][0] = 0.0
        before = np.zeros((last + 1, last + 1), dtype=int)
        for k in range(1, last + 1):
            row = np.full(last + 1, np.inf)
            for t in range(k, last + 1):
                through = best[-1][:t] + table[t, :t]
                before[k, t] = through.argmin()
                row[t] = through[before[k, t]]
            best.append(row)
        paths = []
        for edges in range(2, last + 1):
            path = [last]
            for k in range(edges, 1, -1):
                path.append(int(before[k, path[-1]]))
            paths.append(path[::-1])
        return paths

    def ours() -> list[list[int]]:
        paths = ShortestPaths(cost)
        return [paths.nodes(k) for k in range(2, count + 1)]

    assert ours() == loops()
    row = alternate({"ours": ours, "peer": loops}, settings).row(
        "ours", "peer", "dynamic programme", f"N = {count}, all K", 1, "programmes/s"
    )
    row.note = "the same paths; the peer loops over lengths and times"
    yield row


def frechet(settings: Settings) -> Iterator[Row]:
    """The distance between two Gaussians in 2,048 dimensions, compared with ``scipy.linalg.sqrtm``."""
    import scipy.linalg

    dimensions = 64 if settings.quick else 2048
    generator = torch.Generator().manual_seed(0)
    statistics = []
    for scale in (1.0, 1.1):
        moments = Moments()
        for _ in range(4):
            moments.update(scale * torch.randn(1000, dimensions, generator=generator))
        statistics.append(moments.mean_and_covariance())
    (mean_1, cov_1), (mean_2, cov_2) = ((m.numpy(), c.numpy()) for m, c in statistics)
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = float(frechet_distance(*statistics[0], *statistics[1]))

    def scipy_sqrtm() -> None:
        root = np.real(scipy.linalg.sqrtm(cov_1 @ cov_2))
        found["scipy"] = float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * root))

    times = alternate({"ours": ours, "scipy": scipy_sqrtm}, settings)
    row = times.row("ours", "scipy", "Frechet distance", f"{dimensions} dimensions, 4,000 features", 1, "distances/s")
    row.note = f"beside scipy.linalg.sqrtm; relative difference {abs(found['ours'] / found['scipy'] - 1):.1e}"
    yield row
