"""Fits a strategy to a denoiser in a plain loop, for `optcov.fit`; it does not use Lightning."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.data.batches import RandomBatches
from optcov.denoiser import Denoiser, not_finite
from optcov.schedule.levels import NoiseLevels
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import Trained


def noised(
    denoiser: Denoiser, x_0: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, NoiseLevels]:
    """Draw noisy training data: times uniform on the grid n/N, and white noise.

    Args:
        denoiser: defines the path and the target.
        x_0: clean data in the denoiser's range, ``[B, *event]``.
        generator: random generator on the device of ``x_0``; None for PyTorch's default.
    Returns:
        ``x_t`` and the target of the network, each ``[B, *event]``, and the noise level, ``[B]``.
    """
    num_steps = denoiser.schedule.num_steps
    n = torch.randint(1, num_steps + 1, (len(x_0),), device=x_0.device, generator=generator)
    level = denoiser.levels(n.double() / num_steps)
    eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
    return denoiser.diffuse(x_0, eps, level), denoiser.target(x_0, eps, level), level


def train(
    strategy: Trained,
    denoiser: Denoiser,
    images: Tensor,
    steps: int,
    *,
    labels: Tensor | None = None,
    label_dropout: float = 0.0,
    batch_size: int = 64,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train a strategy's loss with Adam; the learning rate falls to 0 over the last third of the steps.

    Args:
        strategy: the strategy, which is trained in place and left in eval mode without gradients.
        denoiser: a frozen denoiser in eval mode, on the strategy's device.
        images: clean data in the denoiser's range, ``[n, *event]``.
        steps: number of optimizer steps.
        labels: class of each image, int64 ``[n]``; only for class-conditional denoisers.
        label_dropout: share of labels replaced by the null label.
        batch_size: images per step.
        lr: the learning rate.
        seed: seed of the order of images, the times and the noise.
        progress: whether to show a progress bar.
    Returns:
        The loss of each step, in the unit of the strategy's loss.
    Raises:
        ValueError: if the loss is not finite.
    """
    device = next(strategy.parameters()).device
    strategy.requires_grad_().train()
    optimizer = torch.optim.Adam(strategy.parameters(), lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 3 * (steps - step) / steps))
    generator = torch.Generator(device).manual_seed(derive_seed(seed, Stream.TRAINING))
    losses: list[float] = []
    bar = tqdm(RandomBatches(images, batch_size, steps, seed, labels=labels), "fit", steps, disable=not progress)
    for batch in bar:
        x_0, known = (batch, None) if isinstance(batch, Tensor) else batch
        assert isinstance(x_0, Tensor)
        x_t, target, level = noised(denoiser, x_0.to(device), generator)
        if known is not None:
            hidden = torch.rand(len(known), device=device, generator=generator) < label_dropout
            known = known.to(device).masked_fill(hidden, denoiser.num_classes or 0)
        with torch.no_grad():
            prediction = denoiser(x_t, level, known)
        loss = strategy.loss(denoiser, prediction, target).mean()
        if not loss.isfinite():
            if not (fine := prediction.output.isfinite().flatten(1).all(1)).all():
                raise not_finite(float(level.t[~fine][0]))
            raise ValueError(
                f"loss must stay finite (got {float(loss)} at step {len(losses) + 1}): give a smaller lr than {lr}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
        bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
    strategy.requires_grad_(False).eval()
    return losses
