"""The recipe of Keras-DDPM: its learning rates, and LAMB from a library that need not be there."""

import importlib.util
import sys

import pytest
import torch
from lightning import Trainer
from line import Line
from torch.testing import assert_close

from optcov.training import PiecewiseRate, StageSettings
from optcov.training.lamb import lamb


def test_a_missing_library_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"optimizer = lamb needs .*: pip install 'optcov\[lamb\]'"):
        lamb([torch.nn.Parameter(torch.ones(2))])


@pytest.mark.skipif(importlib.util.find_spec("pytorch_optimizer") is None, reason="pytorch_optimizer is not installed")
def test_a_step_is_in_proportion_to_the_size_of_a_weight():
    """The trust ratio ||w|| / ||update||, so that a first step is lr ||w|| long, whatever the gradient's scale."""
    weights = [torch.nn.Parameter(scale * torch.ones(4, 4)) for scale in (0.1, 5.0)]
    optimizer = lamb(weights, lr=0.01)
    sum(100 * scale * weight.sum() for scale, weight in zip((1, 7), weights, strict=True)).backward()
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    for old, new in zip(before, weights, strict=True):
        assert_close((new.detach() - old).norm(), 0.01 * old.norm(), rtol=1e-3, atol=0)


def test_the_rate_of_the_mean_network_is_piecewise_linear():
    """SGD on a loss of slope 1 moves by its learning rates, so that the weight's path shows them."""

    def moved(name: str) -> torch.Tensor:
        stage = Line(StageSettings(lambda weights: torch.optim.SGD(weights, lr=2.0)))
        stage.name = name  # type: ignore[assignment]
        trainer = Trainer(
            accelerator="cpu", max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[PiecewiseRate([0, 2, 4], [0.0, 1.0, 0.5])],
        )  # fmt: skip
        trainer.fit(stage, torch.utils.data.DataLoader(range(6)))
        return -torch.tensor([*stage.path, stage.weight.item()]).diff()

    assert_close(moved("mean"), torch.tensor([1.0, 2.0, 1.5, 1.0, 1.0, 1.0]))
    assert_close(moved("variance"), torch.full((6,), 2.0))
    for steps in ([1, 2], [0, 2, 2], [0]):
        with pytest.raises(ValueError, match=r"callbacks\.learning_rate\.steps must rise from 0"):
            PiecewiseRate(steps, [0.0, 1.0])
