"""Vectors from a Gaussian mixture, whose diffusion is known in closed form (``model=oracle``)."""

from __future__ import annotations

import torch
from torch import Tensor

from optcov.data.base import DataModule, Split
from optcov.oracle import GaussianMixture


class GaussianMixtureData(DataModule):
    """Float vectors ``(d,)``.

    Args:
        mixture: their distribution; keep it within [-1, 1].
        num_train, num_test: how many are drawn.
        batch_size, seed: as in :class:`DataModule`; the draw itself does not depend on the seed.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        num_train: int = 20_000,
        num_test: int = 5_000,
        batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.mixture, self.count = mixture, {"train": num_train, "test": num_test}

    def load(self, split: Split) -> Tensor:
        return self.mixture.sample(*self._draw(split)).float()

    def labels(self, split: Split) -> Tensor:
        """The component of each sample."""
        return self.mixture.draw_components(*self._draw(split))

    def _draw(self, split: Split) -> tuple[int, torch.Generator]:
        if split not in self.count:
            raise ValueError(f"data=gaussian_mixture has no {split} split: it has train and test")
        return self.count[split], torch.Generator().manual_seed({"train": 1, "test": 2}[split])
