"""Seeds for independent streams of randomness."""

from __future__ import annotations

import numpy as np


def derive_seed(*entropy: int) -> int:
    """A well-mixed 32-bit seed from non-negative integers, such as (seed, rank, step)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
