"""The conventions that a source states about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optcov.adapter.time import TimeFeed
from optcov.parameterization import Parameterization


@dataclass(frozen=True)
class Conventions:
    """The conventions that a source states about itself; None for those it does not state."""

    shape: tuple[int, ...] | None = None
    prediction: str | Parameterization | None = None
    schedule: Any = None
    time: str | TimeFeed | None = None
    data_range: Any = None
    learned_sigma: bool | None = None
    num_classes: int | None = None
    null_class: int | None = None
    integer_time: bool = False
