"""The stages in Lightning: what they train on, and what they store."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from line import Line
from torch import Tensor, nn
from torch.testing import assert_close

from optcov.covariance import Covariance
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.model import UNet
from optcov.parameterization import X0
from optcov.sampler import DDIMSampler, DDPMSampler, Sampler
from optcov.schedule import LinearSchedule
from optcov.training import MeanStage, SampleStore, SamplingStage, StageSettings
from optcov.training.modules import learning_rate_factor
from optcov.trajectory import EvenTrajectory
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import Beta, BetaTilde

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def trained(precision: str, **settings: bool) -> torch.Tensor:
    torch.manual_seed(0)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(100))
    stage = MeanStage(denoiser, StageSettings(partial(torch.optim.AdamW, lr=1e-2, **settings)))
    trainer = Trainer(precision=precision, max_steps=4, gradient_clip_val=0.1, **QUIET)
    trainer.fit(stage, torch.randn(16, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    return torch.cat([weight.detach().flatten() for weight in denoiser.parameters()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_is_clipped_like_any_other(precision: str):
    """Lightning refuses to clip for an optimizer that says it unscales gradients, even where nothing is scaled."""
    assert_close(trained(precision, fused=True), trained(precision), rtol=0, atol=1e-4)  # of steps of 1e-2


class Grey(nn.Module):
    """Predicts grey level 51 of 255 everywhere, in the range it was made for; remembers what it was shown."""

    data_shape, feature_channels = (1, 2, 2), 1

    def __init__(self, data_range: DataRange) -> None:
        super().__init__()
        self.answer = float(data_range.from_unit(torch.tensor(51 / 127.5 - 1)))
        self.weight = nn.Parameter(torch.zeros(()))
        self.shown: list[Tensor] = []

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.shown.append(x_t)
        return 0 * x_t + self.answer + self.weight, x_t


RANGES = [DataRange(), DataRange(0.0, 1.0), DataRange(-3.0, 5.0)]


@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_a_stage_trains_on_the_range_of_the_denoiser(data_range: DataRange):
    """Batches come on [-1, 1]; a network that answers them exactly has no loss."""
    denoiser = Denoiser(Grey(data_range), LinearSchedule(100), X0(), data_range=data_range)
    stage = MeanStage(denoiser, StageSettings(torch.optim.SGD))
    grey = torch.full((5, 1, 2, 2), 51 / 127.5 - 1)
    assert float(stage.training_step(grey, 0)) == pytest.approx(0, abs=1e-10)
    assert float(stage.training_step(grey + 2 / 255, 0)) == pytest.approx(4 * float(data_range.grey_level or 0) ** 2)


def drawn(
    folder: Path, denoiser: Denoiser, strategy: VarianceStrategy, sampler: Sampler, count: int = 5
) -> SampleStore:
    folder.mkdir(exist_ok=True)
    store = SampleStore(folder, denoiser.data_shape, count, 3)
    times = EvenTrajectory().times(denoiser.schedule, sampler.num_steps)
    stage = SamplingStage(denoiser, strategy, sampler, times, 0, store)
    Trainer(use_distributed_sampler=False, **QUIET).predict(stage, return_predictions=False)
    return store


@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_samples_are_stored_as_grey_levels_with_what_they_cost(tmp_path: Path, data_range: DataRange):
    denoiser = Denoiser(Grey(data_range), LinearSchedule(100), X0(), data_range=data_range)
    store = drawn(tmp_path, denoiser, BetaTilde(denoiser), DDIMSampler(4))
    assert torch.cat(list(store)).unique().tolist() == [51]
    assert store.cost() == {"nfe": 4, "ne": 4}


def test_a_strategy_may_take_gradients_while_samples_are_drawn(tmp_path: Path):
    """Lightning predicts in inference mode, in which it could not; and what it asks counts."""

    class Curious(Beta):
        def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
            product = denoiser.vjp(prediction, torch.ones_like(prediction.x_t))
            assert product.shape == prediction.x_t.shape
            return super().covariance(denoiser, prediction)

    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(100))
    plain = drawn(tmp_path / "plain", denoiser, Beta(denoiser), DDPMSampler(4))
    curious = drawn(tmp_path / "curious", denoiser, Curious(denoiser), DDPMSampler(4))
    assert torch.equal(torch.cat(list(plain)), torch.cat(list(curious)))
    assert plain.cost() == {"nfe": 4, "ne": 4}
    assert curious.cost()["ne"] > 4


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    factors = [learning_rate_factor(step, 100, warmup_steps=9, cooldown=0.5) for step in range(101)]
    assert_close(factors[:11], [(step + 1) / 10 for step in range(10)] + [1.0])
    assert factors[10:51] == [1.0] * 41
    assert_close(factors[50:], [(100 - step) / 50 for step in range(50, 101)])
    assert [learning_rate_factor(step, 100, cooldown=0.0) for step in (0, 99, 200)] == [1.0] * 3
    assert_close(learning_rate_factor(25, 100, cooldown=1.0), 0.75)


def test_a_stage_steps_at_the_learning_rate_of_its_cooldown():
    """SGD on a loss of slope 1 moves by its learning rates, so that the weight's path shows them."""

    stage = Line(StageSettings(partial(torch.optim.SGD, lr=1.0), cooldown=1.0))
    trainer = Trainer(
        accelerator="cpu", max_steps=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, torch.zeros(4, 1))
    assert_close([*stage.path, stage.weight.item()], [0.0, -1.0, -1.75, -2.25, -2.5])
