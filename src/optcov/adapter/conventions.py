"""What a source says of its own conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optcov.adapter.time import TimeFeed
from optcov.parameterization import Parameterization


@dataclass(frozen=True)
class Conventions:
    """What a source says of itself; None where it says nothing."""

    shape: tuple[int, ...] | None = None
    prediction: str | Parameterization | None = None
    schedule: Any = None
    time: str | TimeFeed | None = None
    data_range: Any = None
    learned_sigma: bool | None = None
    num_classes: int | None = None
    integer_time: bool = False
