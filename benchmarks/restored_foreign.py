r"""Restores MNIST images with a network that others trained: our strategies, fitted to it here, and Pi-GDM.

    python -m benchmarks.restored_foreign FOLDER [--picture docs/images/restored_foreign.png]

FOLDER is that of `benchmarks.foreign`.  The lower half of the image is missing; y has noise of 0.05 in the network's
unit, whose range is [-0.5, 0.5].  Strategies are fitted on 8,000 of MNIST's test images, and 16 others are restored
with 20 samples each.  Scores of the missing pixels, by CSV: PSNR of the samples' mean in dB, coverage of 90 %
intervals, and CRPS in the network's unit, each with its standard error; see `optcov.posterior.scores`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optcov
from benchmarks.foreign import load, mnist
from benchmarks.restored_digits import theirs
from optcov.denoiser import Denoiser
from optcov.inverse import Mask
from optcov.posterior import rivals
from optcov.posterior.scores import against

NOISE, CALLS, FITTED_ON = 0.05, 10, 8000
STRATEGIES: dict[str, dict[str, Any]] = {"npr_dpm": {"steps": 200}, "low_rank": {"steps": 200}, "data_cov": {}}
RIVALS = {"pi_gdm": 3, "pi_gdm_long": 10}  # number of steps, of which each costs 3 network equivalents


def scores(truth: Tensor, samples: Tensor, operator: Mask) -> str:
    """PSNR, coverage and CRPS of the missing pixels, with their standard errors."""
    hidden = operator.adjoint(torch.ones(1, *operator.measurement_shape))[0].flatten() == 0
    truth, samples = truth.flatten(1)[:, hidden], samples.flatten(2)[..., hidden]
    found = against(truth, samples)
    psnr = -10 * ((samples.mean(1) - truth) ** 2).mean(1).log10()  # the range of the data is 1
    table = {"psnr": psnr, "c90": found["c90"], "crps": found["crps"]}
    return ",".join(f"{float(v.mean()):.4f},{float(v.std() / len(v) ** 0.5):.4f}" for v in table.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with mnist_cnn.pth and t10k-images-idx3-ubyte.gz")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--measurements", type=int, default=16)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--picture", type=Path, help="PNG to write, of the strategy with the most directions")
    args = parser.parse_args()
    images = mnist(args.folder)
    denoiser: Denoiser = load(args.folder, images=images[:64]).eval()
    truth = denoiser.data_range.from_unit(images[FITTED_ON : FITTED_ON + args.measurements].float() / 127.5 - 1)
    operator = Mask(denoiser.data_shape, torch.arange(28 * 28).reshape(28, 28) < 14 * 28)
    y = operator(truth)
    y = y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    total = len(truth) * args.samples
    print("method,ne,cpu_ms,psnr,psnr_se,c90,c90_se,crps,crps_se")

    def report(label: str, draw: Callable[[], Tensor], steps: int | None = None) -> None:
        """Draw, and print a line; a rival's products share a call with its prediction."""
        denoiser.cost.reset()
        begun = time.process_time()
        samples = draw()
        spent = 1000 * (time.process_time() - begun) / total
        calls = denoiser.cost.ne if steps is None else denoiser.cost.ne - denoiser.cost.nfe + steps * total
        print(f"{label},{calls / total:.0f},{spent:.0f},{scores(truth, samples, operator)}", flush=True)

    for label in args.strategies:
        strategy = optcov.fit(label, denoiser, images[:FITTED_ON], progress=False, **STRATEGIES[label])

        def restored(strategy: Any = strategy) -> optcov.restoring.Restoration:
            return optcov.restore(
                denoiser, strategy, y, operator, NOISE, args.samples, CALLS, batch_size=512, progress=False
            )

        report(label, lambda restored=restored: restored().samples)  # type: ignore[misc]
        if args.picture is not None and label == "low_rank":
            restored().picture(args.picture, truth=truth)
    for label in args.rivals:
        steps, method = RIVALS[label], rivals.pi_gdm_for(0.25)  # of 1 on [-1, 1]
        report(label, lambda s=steps, m=method: theirs(denoiser, operator, y, m, args.samples, s, noise=NOISE), steps)  # type: ignore[misc]


if __name__ == "__main__":
    main()
