"""Shortest paths with a given number of edges, computed for every number at once by dynamic programming.

    D_1(t) = cost(t, 0),    D_k(t) = min over s < t of D_{k-1}(s) + cost(t, s)

Source: Analytic-DPM (arXiv:2201.06503), Appendix E; Watson et al. (arXiv:2106.03802), Algorithm 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class ShortestPaths:
    """The shortest path ``0 < tau_1 < ... < tau_K = N`` with K edges from node 0 to node N, for each K = 1..N.

    Args:
        cost: float64 ``[N + 1, N + 1]``; ``cost[t, s]`` is the cost of the edge from s to t, used only for ``s < t``;
            inf if there is no such edge.
    Raises:
        ValueError: if a cost is NaN.
    """

    def __init__(self, cost: Tensor) -> None:
        table = np.tril(cost.cpu().numpy().astype(np.float64), -1)
        if np.isnan(table).any():
            raise ValueError(
                f"costs must be numbers (got NaN for {int(np.isnan(table).sum())} steps): fit the variance again"
            )
        self._last = len(table) - 1
        table[np.triu_indices(len(table))] = np.inf
        best = np.full(len(table), np.inf)
        best[0] = 0.0
        self._before: list[NDArray[np.intp]] = []  # for each K, the predecessor of every node from K on
        totals = []
        for edges in range(1, len(table)):
            through = table[edges:, edges - 1 :] + best[edges - 1 :]
            before = through.argmin(1)
            best = np.concatenate([np.full(edges, np.inf), np.take_along_axis(through, before[:, None], 1)[:, 0]])
            self._before.append(before + edges - 1)
            totals.append(best[-1])
        self.totals = np.array(totals)  # entry K - 1 is the cost of the best path with K edges, inf if there is none

    def nodes(self, num_edges: int) -> list[int]:
        """``tau_1 .. tau_K`` of the best path with K edges.

        Raises:
            ValueError: if there is none.
        """
        if not np.isfinite(self.totals[num_edges - 1]):
            raise ValueError(
                f"sampler.num_steps must be one for which a path of finite cost leads from 0 to {self._last} "
                f"(got {num_edges}): give fewer steps"
            )
        path = [self._last]
        for edges in range(num_edges, 1, -1):
            path.append(int(self._before[edges - 1][path[-1] - edges]))
        return path[::-1]
