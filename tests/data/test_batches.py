"""Batches: every image once an epoch, flips that a position determines, floats on the device, a bitwise resume."""

from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from optcov.data.base import DataSource, Split
from optcov.data.batches import FlippedBatch, RandomBatches
from optcov.training.data import DataModule

IMAGES = torch.randint(0, 256, (23, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Noise(DataSource):
    def load(self, split: Split) -> Tensor:
        return IMAGES


def flips(seed: int = 0, rank: int = 0, batches: int = 40) -> Tensor:
    stream = RandomBatches(IMAGES, 50, batches, seed, rank, 2, random_flip=True)
    return torch.stack([batch.flips for batch in stream if isinstance(batch, FlippedBatch)])


def test_every_image_comes_once_an_epoch_whatever_the_number_of_processes() -> None:
    numbers = torch.arange(24)
    for world_size in (1, 2, 3):
        streams = [RandomBatches(numbers, 4, 24 // (4 * world_size), 5, rank, world_size) for rank in range(world_size)]
        seen = torch.cat([batch for stream in streams for batch in stream])
        assert seen.sort().values.equal(numbers)


def test_half_of_the_images_are_mirrored_and_nothing_else_happens_to_them() -> None:
    plain = list(RandomBatches(IMAGES, 7, 5))
    for batch, expected in zip(RandomBatches(IMAGES, 7, 5, random_flip=True), plain, strict=True):
        assert isinstance(batch, FlippedBatch)
        assert batch.images.equal(expected)
        for image, before, flip in zip(batch.flipped(), batch.images, batch.flips, strict=True):
            assert image.equal(before[..., range(3, -1, -1)] if flip else before)
    share = flips(batches=200).float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 10_000**0.5


def test_the_flips_of_a_step_depend_on_seed_rank_and_step_alone() -> None:
    assert flips().equal(flips())
    assert not flips().equal(flips(seed=1))
    assert not flips().equal(flips(rank=1))
    assert not flips()[0].equal(flips()[1])
    stream = RandomBatches(IMAGES[:5], 50, 40, 0, 0, 2, random_flip=True)  # other data, started in the middle
    stream.load_state_dict({"position": 30})
    torch.rand(3)  # and another state of the global generator
    batch = next(iter(stream))
    assert isinstance(batch, FlippedBatch)
    assert batch.flips.equal(flips()[30])


def test_a_batch_becomes_floats_on_the_device() -> None:
    data = DataModule(Noise(random_flip=True))
    flip = torch.tensor([True, False])
    batch = data.on_after_batch_transfer(FlippedBatch(IMAGES[:2], flip), 0)
    expected = torch.stack([IMAGES[0].flip(-1), IMAGES[1]]).float() / 127.5 - 1
    torch.testing.assert_close(batch, expected, rtol=0, atol=1e-6)
    assert batch.dtype == torch.float32
    assert data.on_after_batch_transfer(IMAGES[:2], 0).aminmax().min >= -1


class Recorder(LightningModule):
    """Learns nothing, remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.weight * batch.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_the_batches_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Recorder, Trainer]:
        recorder = Recorder()
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        data = DataModule(Noise(batch_size=5, seed=3, random_flip=True))
        trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return recorder, trainer

    whole, _ = fit(9)

    class Stopping(Recorder):
        def on_train_batch_end(self, *args: object) -> None:
            if len(self.seen) == 4:
                self.trainer.save_checkpoint(tmp_path / "middle.ckpt")

    stopping = Stopping()
    trainer = Trainer(
        accelerator="cpu", max_steps=9, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(stopping, datamodule=DataModule(Noise(batch_size=5, seed=3, random_flip=True)))
    resumed, _ = fit(9, tmp_path / "middle.ckpt")
    assert len(resumed.seen) == 5
    assert torch.stack(resumed.seen).equal(torch.stack(whole.seen[4:]))


def test_data_without_files_add_nothing_to_the_identity_of_a_network() -> None:
    assert Noise().identity() == {}
