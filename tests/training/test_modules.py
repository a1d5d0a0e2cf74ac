"""A stage in Lightning."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.testing import assert_close

from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.schedule import LinearSchedule
from optcov.training import MeanStage


def trained(precision: str, **settings: bool) -> torch.Tensor:
    torch.manual_seed(0)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(100))
    stage = MeanStage(denoiser, partial(torch.optim.AdamW, lr=1e-2, **settings))
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_steps=4, gradient_clip_val=0.1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, torch.randn(16, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    return torch.cat([weight.detach().flatten() for weight in denoiser.parameters()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_is_clipped_like_any_other(precision: str):
    """Lightning refuses to clip for an optimizer that says it unscales gradients, even where nothing is scaled."""
    assert_close(trained(precision, fused=True), trained(precision), rtol=0, atol=1e-4)  # of steps of 1e-2
