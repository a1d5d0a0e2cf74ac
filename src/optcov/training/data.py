"""Lightning's view of a data source: the training batches of one process."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule

from optcov.data.base import DataSource
from optcov.data.batches import FlippedBatch, LabelledBatch, RandomBatches


class DataModule(LightningDataModule):
    """Feeds shuffled batches of a source to a stage; mirrored and put on [-1, 1] on the device that trains.

    Args:
        source: whose ``batch_size``, ``seed`` and ``random_flip`` hold.
        labelled: yield :class:`~optcov.data.batches.LabelledBatch`.
    """

    def __init__(self, source: DataSource, labelled: bool = False) -> None:
        super().__init__()
        self.source, self.labelled = source, labelled

    def train_dataloader(self) -> RandomBatches:
        assert self.trainer is not None
        return RandomBatches(
            self.source.train,
            self.source.batch_size,
            self.trainer.max_steps * self.trainer.accumulate_grad_batches,
            self.source.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.source.random_flip,
            self.source.labels("train") if self.labelled else None,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, LabelledBatch):
            return LabelledBatch(self.on_after_batch_transfer(batch.samples, dataloader_idx), batch.labels)
        return self.source.normalize(batch.flipped() if isinstance(batch, FlippedBatch) else batch)
