"""Measures what correlations gain on digits: samples and bits/dim of one mean network, by strategy.

    python train.py model=unet var=sn_dpm schedule=linear trainer.max_steps=1150    the network
    python -m benchmarks.correlations [RUN]        lines of CSV: strategy, score, value; RUN as in benchmarks.picture

Heads are trained side by side on the same outputs of the network, and the chains of all strategies draw from the same
noise; nothing else differs.  This takes minutes on two cores, because the slow samples of `jacobian` are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from optcov.data import DigitsData
from optcov.data.batches import RandomBatches
from optcov.denoiser import Denoiser
from optcov.fitting import noised
from optcov.metric import FrechetPixelDistance, Reference
from optcov.model import SimpleHead
from optcov.registry import make, settings_of
from optcov.variance.base import Calibrated, Trained, VarianceStrategy

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "beta_tilde": ("beta_tilde", {}),
    "npr_dpm": ("npr_dpm", {}),
    "sn_dpm": ("sn_dpm", {}),
    "nll": ("nll", {}),
    "low_rank": ("low_rank", {}),
    "dct_head": ("dct_head", {}),
    "kdct": ("kdct", {}),
    "data_cov": ("data_cov", {}),
    "lgs": ("lgs", {"difference": 0.01}),
    "lgs_corrected": ("lgs_corrected", {"difference": 0.01}),
    "low_rank_jacobian": ("low_rank", {"jacobian_weight": 1.0, "nll_weight": 0.0}),
    "low_rank_both": ("low_rank", {"jacobian_weight": 1.0}),
    "ocm": ("ocm", {}),
    "dct": ("dct", {"num_times": 50}),
    "analytic": ("analytic", {"num_times": 50}),
    "jacobian": ("jacobian", {}),
}
CHAINS = (("ddim", "quadratic", 5), ("ddpm", "even", 5), ("ddpm", "even", 10))


def fitted(labels: list[str], denoiser: Denoiser, steps: int, batch_size: int = 64) -> dict[str, VarianceStrategy]:
    """Fit strategies, by label; those that learn are trained by Adam on the same noisy images.

    Args:
        labels: names in `STRATEGIES`.
        denoiser: a denoiser of digits.
        steps: number of training steps, in which the learning rate falls from 0.01 to 0.
        batch_size: images per step.
    """
    images, strategies = DigitsData().calibration(1500), {}
    for label in labels:
        name, settings = STRATEGIES[label]
        head = {"head": SimpleHead} if "head" in settings_of("var", name) else {}
        torch.manual_seed(0)
        strategies[label] = make("var", name, denoiser=denoiser, **settings, **head)
        if isinstance(strategies[label], Calibrated):
            optcov.fit(strategies[label], denoiser, images)
    learning = [strategy for strategy in strategies.values() if isinstance(strategy, Trained)]
    parameters = [parameter for strategy in learning for parameter in strategy.parameters()]
    if parameters:
        optimizer = torch.optim.Adam(parameters, 0.01)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        generator = torch.Generator().manual_seed(0)
        for x_0 in RandomBatches(images, batch_size, steps, 0):
            assert isinstance(x_0, Tensor)
            x_t, target, level = noised(denoiser, x_0, generator)
            with torch.no_grad():
                prediction = denoiser(x_t, level)
            optimizer.zero_grad()
            for strategy in learning:
                strategy.loss(denoiser, prediction, target).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
    return {label: strategy.requires_grad_(False).eval() for label, strategy in strategies.items()}


def distance(samples: Tensor, reference: Reference) -> float:
    """Compute fd_pixel of samples, ``[count, 1, 8, 8]``."""
    metric = FrechetPixelDistance()
    metric.refer_to(reference)
    metric.update(samples)
    (score,) = metric.compute().values()
    return score.value


def bits(denoiser: Denoiser, strategy: VarianceStrategy, count: int, calls: int) -> Iterator[tuple[str, float]]:
    """Yield the bound on test images, in bits/dim, and its standard error."""
    data = DigitsData()
    test = data.normalize(data.load("test")[:count])
    score = optcov.bits_per_dim(denoiser, strategy, test, calls, progress=False)
    yield f"bits {calls}", score.value
    yield f"bits {calls} se", float(score.standard_error or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or a mean.safetensors")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--steps", type=int, default=600, help="number of training steps")
    parser.add_argument("--count", type=int, default=2000, help="number of samples scored")
    parser.add_argument("--held-out", type=int, default=100, help="number of test images for bits/dim")
    args = parser.parse_args()
    if args.run is None:
        from benchmarks.picture import newest_run

        args.run = newest_run(Path("outputs/train"))
    denoiser = optcov.load(args.run)
    strategies = fitted(args.strategies, denoiser, args.steps)
    reference = Reference(DigitsData().reference())
    for sampler, trajectory, calls in CHAINS:
        for label, strategy in strategies.items():
            if label != "jacobian":
                samples = optcov.sample(
                    denoiser, strategy, calls, args.count, sampler, trajectory, batch_size=500, progress=False
                )
                print(f"{label},{sampler} {trajectory} {calls},{distance(samples, reference):.4f}", flush=True)
    for label, strategy in strategies.items():
        for name, value in bits(denoiser, strategy, args.held_out, 10):
            print(f"{label},{name},{value:.4f}", flush=True)


if __name__ == "__main__":
    main()
