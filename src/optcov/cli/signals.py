"""SIGTERM, which schedulers send: a fit ends with its step, everything else at once, and the status is 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # exit status
UNFINISHED = 75  # exit status of a fit that stopped before its last step: EX_TEMPFAIL, "try again"


class Terminated(BaseException):
    """SIGTERM was received; the message says where the same command continues."""


class Unfinished(Exception):
    """A fit ended before its last step, as it was asked to; the message says how far it came."""


class _State:
    patient = False  # whether the work at hand ends by itself, soon


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM for the duration of a block, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*args: Any) -> None:
        if not _State.patient:
            raise Terminated
        _State.patient = False  # a second signal does not wait

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def patient() -> Iterator[None]:
    """Leave a first SIGTERM to Lightning, which ends a fit after its step."""
    _State.patient = True
    try:
        yield
    finally:
        _State.patient = False


@contextmanager
def requeued_after(stop: Callable[[], None]) -> Iterator[None]:
    """Let a launcher's handler of SIGUSR1 or SIGUSR2, which requeues the job and exits, wait for the end of a block.

    Such a signal announces that the time of the job is over (submitit's: SIGUSR2).  Without a handler nothing changes.

    Args:
        stop: tells the block to end soon.
    """
    handlers = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGUSR2)}
    waiting = {each: handler for each, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        waiting = {}
    asked = list[tuple[signal.Signals, Any]]()

    def ask(signum: int, frame: Any) -> None:
        asked.append((signal.Signals(signum), frame))
        stop()

    for each in waiting:
        signal.signal(each, ask)
    try:
        yield
    finally:
        for each, handler in waiting.items():
            signal.signal(each, handler)
    for each, frame in asked[:1]:
        waiting[each](each, frame)
