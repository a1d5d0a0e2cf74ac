"""What Lightning runs: the two training stages and sampling.  Formulas live in denoisers, strategies and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from optcov.data.pixels import to_uint8
from optcov.denoiser import Denoiser
from optcov.sampler import NoiseStream, Sampler
from optcov.seeds import derive_seed
from optcov.variance.base import VarianceStrategy

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Stage(LightningModule):
    """A training stage: draws times and noise, steps on a loss per sample.

    The noise of a step depends on (seed, rank, step) alone, so a resumed run continues as if never stopped.

    Args:
        optimizer: makes the optimizer from the trained parameters.
        warmup_steps: the learning rate rises linearly over this many steps.
        seed: of times and noise.
    """

    name: str

    def __init__(self, optimizer: OptimizerFactory, warmup_steps: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.optimizer, self.warmup_steps, self.seed = optimizer, warmup_steps, seed

    denoiser: Denoiser

    def per_sample_loss(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Loss ``[B]`` of noisy data at times ``[B]``."""
        raise NotImplementedError

    def training_step(self, x_0: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(derive_seed(self.seed, self.global_rank, batch_idx))
        schedule = self.denoiser.schedule
        n = torch.randint(1, schedule.num_steps + 1, (len(x_0),), device=x_0.device)
        t = n.double() / schedule.num_steps
        eps = torch.randn_like(x_0)
        loss = self.per_sample_loss(self.denoiser.diffuse(x_0, eps, t), eps, t).mean()
        self.log(f"{self.name}/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if hasattr(optimizer, "_step_supports_amp_scaling"):  # fused; Lightning unscales, then clips
            optimizer._step_supports_amp_scaling = False
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}


class MeanStage(Stage):
    """Stage 1: the mean network learns the noise."""

    name = "mean"

    def __init__(self, denoiser: Denoiser, optimizer: OptimizerFactory, warmup_steps: int = 0, seed: int = 0) -> None:
        super().__init__(optimizer, warmup_steps, seed)
        self.denoiser = denoiser

    def per_sample_loss(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.denoiser.loss(self.denoiser(x_t, t), eps)


class VarianceStage(Stage):
    """Stage 2: a strategy learns on the frozen mean network, which stays in eval mode."""

    name = "variance"

    def __init__(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        optimizer: OptimizerFactory,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, warmup_steps, seed)
        self.denoiser = denoiser.requires_grad_(False)
        self.strategy = strategy
        self.strict_loading = False  # the frozen network is not in this stage's checkpoints

    def on_train_start(self) -> None:
        self.denoiser.eval()

    def per_sample_loss(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            prediction = self.denoiser(x_t, t)
        return self.strategy.loss(self.denoiser, prediction, eps, x_t, t)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name.startswith("strategy.")}


class SamplingStage(LightningModule):
    """Draws the samples whose indices it is given, and leaves them as 8-bit parts in a folder, one per process.

    Args:
        denoiser, strategy, sampler, times: as in :func:`optcov.sampler.sample`.
        seed: sample i depends on (seed, i) alone.
        folder: where the parts go.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        sampler: Sampler,
        times: Tensor,
        seed: int,
        folder: Path,
    ) -> None:
        super().__init__()
        # autocast keeps its copies of weights from call to call for those alone that require gradients
        self.denoiser, self.strategy = denoiser.requires_grad_(), strategy
        self.sampler, self.times = sampler, times
        self.seed, self.folder = seed, folder
        self._indices: list[Tensor] = []
        self._images: list[Tensor] = []

    def predict_step(self, indices: Tensor, batch_idx: int) -> None:
        noise = NoiseStream(self.seed, indices.tolist(), self.denoiser.data_shape, self.device)
        x_0 = self.sampler.sample(self.denoiser, self.strategy, self.times, noise)
        self._indices.append(indices.cpu())
        self._images.append(to_uint8(x_0).cpu())

    def on_predict_end(self) -> None:
        if not self._indices:  # fewer samples than processes
            return
        part = {"indices": torch.cat(self._indices), "images": torch.cat(self._images)}
        torch.save(part, self.folder / f"part_{self.global_rank}.pt")
