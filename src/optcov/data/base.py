"""The seam between data and everything else: tensors in memory, of one shape, on [-1, 1] once on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor

from optcov.data.batches import FlippedBatch, LabelledBatch, RandomBatches
from optcov.data.pixels import from_uint8, to_uint8

Split = Literal["train", "val", "test"]


class DataModule(LightningDataModule, ABC):
    """A data set that fits in memory.

    A subclass answers :meth:`load`; images are uint8 ``[n, C, H, W]``, vectors float ``[n, D]`` on [-1, 1].

    Args:
        batch_size: images per process and training step.
        seed: of the order of training, and of its flips.
        random_flip: mirror half of the training images, drawn anew in each step.
    Attributes:
        labelled: whether training batches come with their labels.
    """

    labelled: bool = False

    def __init__(self, batch_size: int = 64, seed: int = 0, random_flip: bool = False) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size = {batch_size} trains on nothing: give at least 1")
        self.batch_size, self.seed, self.random_flip = batch_size, seed, random_flip

    @abstractmethod
    def load(self, split: Split) -> Tensor:
        """The whole split, uint8 ``[n, C, H, W]`` or float ``[n, D]``.

        Raises:
            ValueError: if the data have no such split, or it can not be read.
        """

    def labels(self, split: Split) -> Tensor:
        """The class of each sample of :meth:`load`, int64 ``[n]``.

        Raises:
            ValueError: if the data have no classes.
        """
        raise ValueError(f"{type(self).__name__} has no classes: choose data that have, such as data=cifar10")

    @property
    def num_classes(self) -> int:
        """K, where labels are 0..K-1.

        Raises:
            ValueError: if the data have no classes.
        """
        return int(self.labels("train").max()) + 1

    def identity(self) -> dict[str, Any]:
        """What determines the training data and stands in no config, as JSON: nothing, unless they come from files."""
        return {}

    @cached_property
    def train(self) -> Tensor:
        """The training split, loaded once."""
        return self.load("train")

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    def reference(self) -> Tensor:
        """The training split as grey levels: what samples are compared with; uint8 ``[n, *data_shape]``."""
        return self.train if self.train.dtype == torch.uint8 else to_uint8(self.train)

    def prepare(self, batch: Tensor) -> Tensor:
        """A raw batch, on its device, to float32 on [-1, 1]."""
        return from_uint8(batch) if batch.dtype == torch.uint8 else batch.to(torch.float32)

    def calibration(self, count: int) -> Tensor:
        """``count`` training samples drawn with the seed, ready for a network; all of them if there are fewer."""
        return self.prepare(self.train[self._calibration_order(count)])

    def calibration_labels(self, count: int) -> Tensor:
        """The labels of :meth:`calibration`."""
        return self.labels("train")[self._calibration_order(count)]

    def _calibration_order(self, count: int) -> Tensor:
        return torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))[:count]

    def train_dataloader(self) -> RandomBatches:
        assert self.trainer is not None
        trainer = self.trainer
        num_batches = trainer.max_steps * trainer.accumulate_grad_batches
        return RandomBatches(
            self.train,
            self.batch_size,
            num_batches,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            self.random_flip,
            self.labels("train") if self.labelled else None,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, LabelledBatch):
            return LabelledBatch(self.on_after_batch_transfer(batch.samples, dataloader_idx), batch.labels)
        return self.prepare(batch.flipped() if isinstance(batch, FlippedBatch) else batch)
