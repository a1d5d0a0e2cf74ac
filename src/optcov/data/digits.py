"""scikit-learn's handwritten digits: 1797 real 8 x 8 images that need no download (UCI, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from optcov.data.base import DataSource, Split


class DigitsData(DataSource):
    """Grey images ``(1, 8, 8)`` with 17 levels spread over 0..255; 1500 are for training, 297 for testing.

    Args:
        batch_size, seed, random_flip: as in `DataSource`.
    """

    def load(self, split: Split) -> Tensor:
        return (self._split("images", split) * 255 / 16).round().to(torch.uint8)[:, None]

    def labels(self, split: Split) -> Tensor:
        """The digit that each image shows."""
        return self._split("target", split).long()

    @staticmethod
    def _split(what: str, split: Split) -> Tensor:
        parts = {"train": slice(1500), "test": slice(1500, None)}
        if split not in parts:
            raise ValueError(f"data=digits has no {split} split: it has train and test")
        return torch.tensor(_digits()[what][parts[split]])


@cache
def _digits() -> Any:
    """scikit-learn's dictionary of arrays, whose text file takes longer to parse than a tiny run."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    return load_digits()
