"""Time feeds: named functions from a noise level to the number that a network is fed as time.

A wrong time feed is the most common silent mistake with third-party networks, because the network still draws pictures.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels

TimeFeed = Callable[[NoiseLevels], Tensor]
"""A function from a level to the number that the network is fed, float64, in the level's shape."""

FEEDS: dict[str, Callable[[NoiseLevels, int], Tensor]] = {
    "n": lambda level, num_steps: level.t * num_steps,  # 1..N
    "n-1": lambda level, num_steps: level.t * num_steps - 1,  # 0..N-1: diffusers, Improved DDPM, lucidrains
    "1000t": lambda level, _: 1000 * level.t,
    "999t": lambda level, _: 999 * level.t,  # score SDEs
    "t": lambda level, _: level.t,  # flow matching
    "log_snr": lambda level, _: level.log_snr,
    "edm": lambda level, _: -level.log_snr / 8,  # c_noise = ln(sigma / alpha) / 4
}


def time_feed(name: str | TimeFeed, schedule: NoiseSchedule) -> TimeFeed:
    """Look up a feed by its name in `FEEDS`; a function of the level is returned unchanged.

    Raises:
        ValueError: if there is no such feed.
    """
    if callable(name):
        return name
    if not isinstance(name, str) or name not in FEEDS:
        raise ValueError(
            f"time must be one of {', '.join(map(repr, FEEDS))}, or a function of the level (got {name!r}): say what "
            "the network is fed at step n of N, t = n/N"
        )
    feed, num_steps = FEEDS[name], schedule.num_steps
    return lambda level: feed(level, num_steps)
