"""The variance of a run against time, as a table and a picture in its folder."""

from __future__ import annotations

import math
from pathlib import Path

from omegaconf import DictConfig

from optcov.cli.build import Parts
from optcov.cli.run_folder import choices
from optcov.cli.trainer import computing, make_trainer
from optcov.files import write_atomically
from optcov.report import plot_variance
from optcov.variance.curve import num_curve_images, variance_curve


def write_variance_curve(cfg: DictConfig, parts: Parts, folder: Path) -> None:
    """Write ``variance.csv`` and ``variance.png``: what samples will see, on a few training images; seconds."""
    import pandas as pd

    with computing(make_trainer(cfg)) as device:
        images, labels = parts.calibration(num_curve_images(math.prod(parts.denoiser.data_shape)), device)
        for module in parts.modules:
            module.to(device).eval()
        curve = variance_curve(*parts.bound(labels), images, 1 / parts.sampler.num_steps, cfg.seed)
    if len(curve["t"]):  # a chain of one step has none between its ends
        frame = pd.DataFrame({name: values.numpy() for name, values in curve.items()})
        write_atomically(folder / "variance.csv", frame.to_csv(index=False))
        plot_variance({choices()["var"]: frame}, folder / "variance.png")
