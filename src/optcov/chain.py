"""The times of a chain of steps, known beforehand: what depends on time alone is computed for all of them at once.

Asked anew at each step, the schedule, the network's time and a strategy's table cost more operations, on single
numbers, than a step does on images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

OfTime = TypeVar("OfTime", bound=Callable[..., Tensor])


class ChainTime(Tensor):
    """A time, 0-dimensional, that knows the others of its chain; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    step: int
    times: Tensor  # [K], all of the chain
    known: dict[Hashable, tuple[Tensor, ...]]  # what was computed of all, one dictionary for them all


def chain(times: Tensor) -> list[ChainTime]:
    """The times ``[K]`` that a loop visits, one by one, for functions that are :func:`once_per_chain`."""
    known: dict[Hashable, tuple[Tensor, ...]] = {}
    nodes = [time.as_subclass(ChainTime) for time in times.unbind()]
    for step, node in enumerate(nodes):
        node.step, node.times, node.known = step, times, known
    return nodes


def once_per_chain(function: OfTime) -> OfTime:
    """Let ``function(..., t)``, elementwise in t, compute all times of a chain when it is first asked at one of them.

    It must give the same for the same arguments, and its answers are not to be written to: they are kept.
    """

    @wraps(function)
    def look_up(*arguments: Any, **named: Any) -> Tensor:
        *others, t = arguments
        if named or not isinstance(t, ChainTime):
            return function(*arguments, **named)
        key = (function, *others)
        if key not in t.known:
            t.known[key] = function(*others, t.times).unbind()
        return t.known[key][t.step]

    return cast(OfTime, look_up)
