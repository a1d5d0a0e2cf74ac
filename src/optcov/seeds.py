"""Seeds for independent streams of randomness."""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np


class Stream(IntEnum):
    """The purposes of random numbers; with the same seed, each purpose has a separate stream."""

    MEAN_WEIGHTS = auto()  # initial weights of a module
    VARIANCE_WEIGHTS = auto()
    CLASSIFIER_WEIGHTS = auto()
    EPOCH = auto()  # the order of the data
    FLIPS = auto()
    TRAINING = auto()  # times, noise, and which labels are hidden
    CALIBRATION = auto()
    TRAJECTORY = auto()
    CURVE = auto()
    TRACKING = auto()
    SAMPLES = auto()
    LABELS = auto()
    NLL = auto()
    FLOW_NLL = auto()
    SHARES = auto()


def derive_seed(seed: int, stream: Stream, *position: int) -> int:
    """A well-mixed 32-bit seed for one position in a stream, such as (rank, step); all arguments are non-negative."""
    if seed < 0:
        raise ValueError(f"seed must not be negative (got {seed}): give a whole number, such as 0")
    return int(np.random.SeedSequence((seed, stream, *position)).generate_state(1)[0])
