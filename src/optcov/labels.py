"""Chooses the class of each sample, either as requested or with the frequencies of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from optcov.seeds import Stream, derive_seed


def draw_labels(frequencies: Tensor, count: int, seed: int = 0) -> Tensor:
    """Draw the classes of samples 0..count-1 by frequency; the class of sample i depends only on (seed, i).

    Args:
        frequencies: frequency of each class, non-negative ``[K]``; need not sum to 1.
        count: number of samples.
        seed: seed of the set of samples.
    Returns:
        int64 ``[count]``.
    """
    edges = frequencies.double().cumsum(0).numpy()
    stream = np.random.default_rng(derive_seed(seed, Stream.LABELS)).random(count)  # one number per sample, in order
    return torch.from_numpy(np.searchsorted(edges, stream * edges[-1], side="right"))


def cycle_labels(classes: int | Sequence[int], num_classes: int, count: int) -> Tensor:
    """Cycle through the requested classes: sample i gets class ``classes[i % len(classes)]``.

    Args:
        classes: one class or several.
        num_classes: K, the number of classes.
        count: number of samples.
    Returns:
        int64 ``[count]``.
    Raises:
        ValueError: if ``classes`` is empty, or one is not in 0..K-1.
    """
    wanted = [classes] if isinstance(classes, int) else list(classes)
    if not wanted:
        raise ValueError("labels must name at least one class (got []): give a class, a list of classes, or null")
    for label in wanted:
        if not 0 <= label < num_classes:
            raise ValueError(
                f"labels must lie between 0 and {num_classes - 1} (got {label}): the data have {num_classes} classes"
            )
    return torch.tensor(wanted).repeat(count // len(wanted) + 1)[:count]
