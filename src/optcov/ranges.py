"""Types of arguments with their range; the command line reads them from source, before anything is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Within:
    """The range of a value, in pydantic's words: ``ge`` is "at least", ``gt`` "above", and lengths are of lists."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None


Count = Annotated[int, Within(ge=0, le=1_000_000_000)]
PositiveCount = Annotated[int, Within(ge=1, le=1_000_000_000)]
Batch = Annotated[int, Within(ge=1, le=1_000_000)]  # samples held at once
Steps = Annotated[int, Within(ge=1, le=1_000_000)]  # of a schedule or a sampler, which hold a number for each
Size = Annotated[int, Within(ge=1, le=8192)]  # of a part of a network
Sizes = Annotated[Sequence[Size], Within(min_length=1, max_length=16)]
Depth = Annotated[int, Within(ge=1, le=256)]  # repeated parts of a network
Order = Annotated[int, Within(ge=1, le=3)]  # of a solver
HighOrder = Annotated[int, Within(ge=1, le=4)]
Positive = Annotated[float, Within(gt=0)]
NonNegative = Annotated[float, Within(ge=0)]
Share = Annotated[float, Within(ge=0, le=1)]
BelowOne = Annotated[float, Within(ge=0, lt=1)]
