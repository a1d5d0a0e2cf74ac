"""A stage whose weight shows the learning rates it was moved by."""

import torch

from optcov.denoiser import Denoiser
from optcov.schedule import LinearSchedule
from optcov.training import Stage, StageSettings


class Line(Stage):
    """A loss of slope 1: SGD moves the weight by its learning rates, so that the weight's path shows them."""

    name = "mean"

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(Denoiser(torch.nn.Identity(), LinearSchedule()), settings)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.path: list[float] = []

    def per_sample_loss(self, *_: object) -> torch.Tensor:
        raise NotImplementedError

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.path.append(self.weight.item())
        return self.weight
