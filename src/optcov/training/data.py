"""A data source as a Lightning data module, which yields the training batches of one process."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from optcov.data.base import DataSource
from optcov.data.batches import FlippedBatch, LabelledBatch, RandomBatches

GPU_SHARE = 1 / 16  # share of a GPU's memory that training data may take


def is_small_on(device: torch.device, data: Tensor) -> bool:
    """Whether the device is a GPU and the data take only a small part of its memory.

    Batches are then made on the GPU.  Copying a batch from host memory would make the host wait until the GPU has
    finished all queued work, so the kernels of the next step would be launched late.
    """
    if device.type != "cuda":
        return False
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return data.nbytes <= GPU_SHARE * memory


class DataModule(LightningDataModule):
    """Feeds shuffled batches of a source to a stage; the training device mirrors them and scales them to [-1, 1].

    Args:
        source: the data source, which sets ``batch_size``, ``seed`` and ``random_flip``.
        labelled: whether to yield `LabelledBatch`.
    """

    def __init__(self, source: DataSource, labelled: bool = False) -> None:
        super().__init__()
        self.source, self.labelled = source, labelled

    def train_dataloader(self) -> RandomBatches:
        assert self.trainer is not None
        data, device = self.source.train, self.trainer.strategy.root_device
        return RandomBatches(
            data.to(device) if is_small_on(device, data) else data,
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
