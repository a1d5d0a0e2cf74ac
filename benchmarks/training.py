"""Measures images per second of both training stages, compared with a plain PyTorch loop on diffusers' network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from benchmarks.gpu import matmul_rate, utilisation
from benchmarks.networks import flops_per_image, pair
from benchmarks.sampling import fitted
from benchmarks.timing import Row, Settings, alternate, synchronize
from optcov.training import EMA, MeanStage, Stage, StageSettings, VarianceStage
from optcov.variance.npr_dpm import NPR
from optcov.variance.sn_dpm import SN

STEPS = {"cpu": 7, "cuda": 23}  # steps in a turn
UNTIMED = 3  # first steps, which are not timed: they create optimizer state, the average and the allocator's pages
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Clock(Callback):
    """Measures the seconds of the timed steps, between which the host runs ahead of the device as in a run."""

    def __init__(self, device: str, last: int) -> None:
        self.device, self.last, self.started, self.seconds = device, last, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == UNTIMED - 1:
            synchronize(self.device)
            self.started = time.perf_counter()
        if batch_idx == self.last:
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.started


def lightning_turn(stage: Stage, batches: Tensor, precision: str, device: str) -> Callable[[], float]:
    """Run a turn of a stage as ``train.py`` does, with clipping and averaging of the weights; return the seconds."""

    def turn() -> float:
        clock = Clock(device, len(batches) - 1)
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=PRECISIONS[precision],  # type: ignore[arg-type]
            max_steps=len(batches),
            gradient_clip_val=1.0,
            callbacks=[EMA(0.999), clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(stage, batches)
        return clock.seconds

    return turn


def plain_turn(peer: Any, batches: Tensor, settings: Settings, precision: str) -> Callable[[], float]:
    """Run diffusers' training example without accelerate: noise, loss, clipping, AdamW, EMA; return the seconds."""
    import diffusers
    from diffusers.training_utils import EMAModel

    schedulers: Any = diffusers
    scheduler = schedulers.DDPMScheduler()
    device = settings.device

    def turn() -> float:
        optimizer = torch.optim.AdamW(peer.train().parameters(), lr=1e-4)
        average = EMAModel(peer.parameters(), decay=0.999)
        for i, x_0 in enumerate(batches):
            eps = torch.randn_like(x_0)
            t = torch.randint(0, 1000, (len(x_0),), device=device)
            with settings.autocast(precision):
                e = peer(scheduler.add_noise(x_0, eps, t), t).sample
                loss = torch.nn.functional.mse_loss(e.float(), eps)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(peer.parameters())
            if i == UNTIMED - 1:
                synchronize(device)
                started = time.perf_counter()
        synchronize(device)
        return time.perf_counter() - started

    return turn


def training(settings: Settings) -> Iterator[Row]:
    """Stage 1, compared with a plain loop on diffusers' network, and the fit of a head on the frozen network."""
    device, batch = settings.device, settings.batch_size
    denoiser, peer = pair(device, settings.channels)
    rate = matmul_rate() if device == "cuda" else 0.0
    flops = flops_per_image(denoiser.network)
    how = StageSettings(partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True))
    batches = torch.randn(STEPS[device], batch, 3, 32, 32, device=device)
    for precision in settings.precisions:
        # in the memory format that channels_last=auto chooses
        last = device == "cpu" and precision == "fp32"
        network = copy.deepcopy(denoiser).to(memory_format=torch.channels_last if last else torch.contiguous_format)  # type: ignore[call-overload]
        mean = MeanStage(network.train(), how)
        frozen = copy.deepcopy(network).eval()
        turns = {
            "stage 1": lightning_turn(mean, batches, precision, device),
            "diffusers": plain_turn(peer, batches, settings, precision),
            "npr_dpm": lightning_turn(
                VarianceStage(frozen, fitted(NPR, frozen, device), how), batches, precision, device
            ),
            "sn_dpm": lightning_turn(
                VarianceStage(frozen, fitted(SN, frozen, device), how), batches, precision, device
            ),
        }
        if settings.compiled and device == "cuda":
            compiled = copy.deepcopy(network)
            compiled.network.compile()
            turns["stage 1, compiled"] = lightning_turn(MeanStage(compiled.train(), how), batches, precision, device)
        times = alternate(turns, settings, tell_seconds=True)
        setting, images = f"{precision}, batch {batch}", batch * (len(batches) - UNTIMED)
        for stage in ("stage 1", "stage 1, compiled"):
            if stage not in turns:
                continue
            goal = ">= 1.3" if stage == "stage 1" else ""
            row = times.row(stage, "diffusers", f"training: {stage}", setting, images, "images/s", goal)
            speed = 3 * flops * images / times.median(stage)
            row.note = f"{speed / 1e9:.0f} GFLOP/s, counting a backward pass as two forward"
            if device == "cuda":
                row.note += f"; {utilisation(speed, settings, rate)}"
            yield row
        for head in ("npr_dpm", "sn_dpm"):
            row = times.row(head, "stage 1", f"training: head of {head}", setting, images, "images/s", ">= 2.5")
            row.note = "the peer is stage 1"
            yield row
