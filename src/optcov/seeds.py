"""Seeds for independent streams of randomness."""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np


class Stream(IntEnum):
    """What random numbers are drawn for; of one seed, each purpose has a stream of its own."""

    MEAN_WEIGHTS = auto()  # what a module starts with
    VARIANCE_WEIGHTS = auto()
    CLASSIFIER_WEIGHTS = auto()
    EPOCH = auto()  # the order of the data
    FLIPS = auto()
    TRAINING = auto()  # times, noise, and labels that are hidden
    CALIBRATION = auto()
    TRAJECTORY = auto()
    CURVE = auto()
    TRACKING = auto()
    SAMPLES = auto()
    LABELS = auto()
    NLL = auto()
    FLOW_NLL = auto()


def derive_seed(seed: int, stream: Stream, *position: int) -> int:
    """A well-mixed 32-bit seed for one place in one stream, such as (rank, step); non-negative integers."""
    return int(np.random.SeedSequence((seed, stream, *position)).generate_state(1)[0])
