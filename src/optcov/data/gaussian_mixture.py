"""Vectors from a Gaussian mixture, whose diffusion is known in closed form (``model=oracle``)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from optcov.data.base import DataSource, Split
from optcov.oracle import GaussianMixture


@dataclass(eq=False)
class GaussianMixtureData(DataSource):
    """Float vectors ``(d,)``.

    Args:
        mixture: the distribution of the vectors; keep it within [-1, 1].
        num_train, num_test: number of vectors in each split; their values do not depend on the seed.
        batch_size, seed: as in `DataSource`.
    Raises:
        ValueError: if ``random_flip`` is set, because a mirrored vector does not follow the mixture.
    """

    mixture: GaussianMixture
    _: KW_ONLY
    num_train: int = 20_000
    num_test: int = 5_000
    batch_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_flip:
            raise ValueError("data.random_flip must be false for data=gaussian_mixture (got True)")

    def load(self, split: Split) -> Tensor:
        return self.mixture.sample(*self._draw(split)).float()

    def labels(self, split: Split) -> Tensor:
        """The component of each sample."""
        return self.mixture.draw_components(*self._draw(split))

    def _draw(self, split: Split) -> tuple[int, torch.Generator]:
        if split == "val":
            raise ValueError("data=gaussian_mixture has no val split: it has train and test")
        count, seed = (self.num_train, 1) if split == "train" else (self.num_test, 2)
        return count, torch.Generator().manual_seed(seed)
