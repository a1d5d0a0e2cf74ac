"""The average of the weights: against an independent recursion, and what it leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from optcov.training import EMA


class Line(LightningModule):
    """Two trained weights, a frozen one, and buffers that count; Lightning may save and restore it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 1).requires_grad_(False)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0.1, dtype=torch.float64))

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        self.count += 1
        self.total += 0.7
        return (self.layer(x) - x.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), lr=0.1)


class Record(Callback):
    """The raw weights after each optimizer step, in float64."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == len(self.weights) + 1:
            self.weights.append(pl_module.layer.weight.detach().double().clone())


def fit(tmp_path: Path, decay: float, steps: int, accumulate: int = 1) -> tuple[Line, Record, Path]:
    line, record = Line(), Record()
    batches = torch.randn(steps * accumulate, 8, 3, generator=torch.Generator().manual_seed(1))
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=[record, EMA(decay), keep], logger=False,
        accumulate_grad_batches=accumulate, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(line, DataLoader(batches, batch_size=None))
    return line, record, tmp_path


def recursion(start: Tensor, weights: list[Tensor], decay: float) -> list[Tensor]:
    """``a_k = d_k a_{k-1} + (1 - d_k) w_k`` with ``d_k = min(decay, (1 + k) / (10 + k))``, k = 1, 2, ..."""
    averages = [start.double()]
    for k, weight in enumerate(weights, 1):
        d = min(decay, (1 + k) / (10 + k))
        averages.append(d * averages[-1] + (1 - d) * weight)
    return averages[1:]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_recursion(tmp_path: Path, decay: float, accumulate: int):
    """One step of the average for each step of the optimizer, however many batches that takes."""
    start = Line().layer.weight.detach()
    line, record, folder = fit(tmp_path, decay, 5, accumulate)
    assert len(record.weights) == 5
    expected = recursion(start, record.weights, decay)
    assert_close(line.layer.weight.detach().double(), expected[-1], rtol=0, atol=1e-6)  # float32 sums
    if decay:
        assert (line.layer.weight - record.weights[-1]).abs().max() > 1e-3  # the average is not the last
    for step in range(1, 6):
        saved = torch.load(folder / f"step={step}.ckpt", weights_only=True)
        assert_close(saved["state_dict"]["layer.weight"].double(), expected[step - 1], rtol=0, atol=1e-6)
        assert torch.equal(saved["raw_weights"]["layer.weight"].double(), record.weights[step - 1])
        assert saved["raw_weights"].keys() == {"layer.weight", "layer.bias"}


def test_frozen_weights_and_buffers_are_left_alone(tmp_path: Path):
    before = Line()
    line, _, folder = fit(tmp_path, 0.9999, 4)
    assert torch.equal(line.frozen.weight, before.frozen.weight)
    assert int(line.count) == 4
    assert line.count.dtype == torch.int64
    assert float(line.total) == pytest.approx(0.1 + 4 * 0.7, rel=1e-12)
    state = torch.load(folder / "step=4.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == before.state_dict().keys()
    assert int(state["count"]) == 4
    assert torch.equal(state["frozen.weight"], before.frozen.weight)


def test_training_itself_does_not_feel_the_average(tmp_path: Path):
    _, with_average, _ = fit(tmp_path / "a", 0.9999, 4)
    _, without, _ = fit(tmp_path / "b", 0.0, 4)
    assert all(torch.equal(a, b) for a, b in zip(with_average.weights, without.weights, strict=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(ValueError, match=r"callbacks\.ema\.decay"):
        EMA(decay)


def test_a_stage_of_no_steps_keeps_its_weights(tmp_path: Path):
    line = Line()
    before = line.layer.weight.detach().clone()
    trainer = Trainer(
        accelerator="cpu", max_steps=0, callbacks=[EMA()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(line, DataLoader(torch.zeros(1, 1, 3), batch_size=None))
    assert torch.equal(line.layer.weight, before)
