"""The recipe of the reference network: its first steps are the same again, bit for bit."""

import pytest
import torch
from command_line import composed
from hydra.utils import instantiate
from lightning import Trainer
from torch import Tensor

from optcov.data import DataSource
from optcov.data.base import Split
from optcov.denoiser import Denoiser
from optcov.training import DataModule, MeanStage, StageSettings

CONFIG = ["experiment=cifar10_small", "var=beta"]


class Noise(DataSource):
    """16 images of grey levels in the shape of CIFAR-10."""

    def load(self, split: Split) -> Tensor:
        return torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def first_steps(seed: int) -> list[Tensor]:
    """The averaged weights after two steps of the recipe, on few images."""
    config = composed(*CONFIG, f"seed={seed}", tiny=False)
    torch.manual_seed(seed)
    denoiser = Denoiser(instantiate(config.model, data_shape=(3, 32, 32)), instantiate(config.schedule))
    optimizer = instantiate(config.optimizer, _convert_="all")
    stage = MeanStage(denoiser, StageSettings(optimizer, config.warmup_steps, config.cooldown, config.seed))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"max_steps": 2, "callbacks": [instantiate(each) for each in config.callbacks.values()]}
    trainer: Trainer = instantiate(config.trainer, **settings, **quiet)
    trainer.fit(stage, datamodule=DataModule(Noise(batch_size=4, seed=config.seed, random_flip=True), False))
    assert trainer.global_step == 2
    return [each.detach().clone() for each in denoiser.parameters()]


@pytest.mark.filterwarnings("ignore")
def test_the_first_steps_are_the_same_again():
    first, again, other = (first_steps(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert sum(each.numel() for each in first) == 4_329_059
