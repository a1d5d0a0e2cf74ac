"""Draws the picture of the README: samples of one mean network at 5 and 10 calls, by strategy, from the same noise.

    python train.py model=unet var=sn_dpm      the network; or `make demo`
    python -m benchmarks.picture [RUN]         docs/images/samples.png; RUN defaults to the newest run of digits

Each strategy is fitted to the run's mean network by `optcov.fit`; nothing else differs between rows.  Sample i of every
row starts from the same x_T and takes the same white noise at each step.  This takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from torch import Tensor

import optcov
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.metric import FrechetPixelDistance, Reference

NAMES: dict[str, dict[str, Any]] = {
    "beta": {},
    "beta_tilde": {},
    "analytic": {"num_times": 200},
    "npr_dpm": {"steps": 2000},
    "sn_dpm": {"steps": 2000},
}
CALLS = (5, 10)
COLUMNS = 8
OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "samples.png"


def draw(denoiser: Denoiser, count: int, quick: bool = False) -> dict[tuple[str, int], Tensor]:
    """Draw samples ``[count, 1, 8, 8]`` for each strategy and number of network calls.

    Args:
        denoiser: a denoiser of digits.
        count: number of samples for each.
        quick: fit in a few steps, to try the script.
    """
    images = DigitsData().calibration(1500)
    samples: dict[tuple[str, int], Tensor] = {}
    for name, settings in NAMES.items():
        if quick:
            settings = dict.fromkeys(settings, 5)
        strategy = optcov.fit(name, denoiser, images, **settings)
        for calls in CALLS:
            samples[name, calls] = optcov.sample(denoiser, strategy, calls, count)
    return samples


def save(samples: dict[tuple[str, int], Tensor], path: Path) -> None:
    """Draw a row for each strategy and a block for each number of calls, with the Frechet distance of each block."""
    reference = Reference(DigitsData().reference())
    figure, axes = plt.subplots(
        len(NAMES), len(CALLS), figsize=(9, 3.1), layout="constrained", gridspec_kw={"wspace": 0.06}, squeeze=False
    )
    for row, name in enumerate(NAMES):
        for column, calls in enumerate(CALLS):
            drawn, axis = samples[name, calls], axes[row, column]
            metric = FrechetPixelDistance()
            metric.refer_to(reference)
            metric.update(drawn)
            (score,) = metric.compute().values()
            strip = drawn[:COLUMNS, 0].clamp(-1, 1).permute(1, 0, 2).reshape(8, -1)
            axis.imshow(strip, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            for border in range(8, 8 * COLUMNS, 8):
                axis.axvline(border - 0.5, color="white", linewidth=1.5)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_ylabel(name if column == 0 else "", rotation=0, ha="right", va="center", family="monospace")
            axis.text(1.02, 0.5, f"{score.value:.2f}", transform=axis.transAxes, ha="left", va="center", fontsize=9)
            if row == 0:
                axis.set_title(f"{calls} network calls", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def newest_run(folder: Path) -> Path:
    """Find the run of digits that ended last.

    Raises:
        FileNotFoundError: if there is none.
    """
    runs = [each for each in folder.glob("*/results.json") if '"data": "digits"' in each.read_text()]
    if not runs:
        raise FileNotFoundError(f"{folder} has no run of digits: run `make demo`, or give the folder of a run")
    return max(runs, key=os.path.getmtime).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or a mean.safetensors")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--count", type=int, default=2000, help="number of samples scored in each block")
    parser.add_argument("--quick", action="store_true", help="fit in a few steps, to try the script")
    args = parser.parse_args()
    run = args.run or newest_run(Path("outputs/train"))
    print(f"{run} -> {args.output}")
    save(draw(optcov.load(run), args.count, args.quick), args.output)


if __name__ == "__main__":
    main()
