"""The modes of ``sample.py mode=...``: pictures of interpolations between images, and of sampling over time."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from optcov.data import DataSource
from optcov.files import atomic_write, write_atomically
from optcov.parts import Parts
from optcov.ranges import Count, PositiveCount
from optcov.report import tile
from optcov.report.picture import save_png
from optcov.sampler import NoiseStream, invert, slerp
from optcov.uncertainties import uncertainty

log = logging.getLogger(__name__)


def to_picture(images: Tensor, data: DataSource) -> Image.Image:
    """Make one picture of a table of images, with small images enlarged and a line to the right of and below each.

    Args:
        images: ``[rows, columns, *data_shape]`` in the range in which the data are modelled, such as [-1, 1].
        data: the source that converts them to grey levels.
    """
    levels = data.levels(data.finish(images.flatten(0, 1)))
    return tile(levels.reshape(*images.shape[:2], *levels.shape[1:]))


class Mode(ABC):
    """Draws a picture that consists of several images.

    Args:
        rows: number of samples, or of pairs of samples; at least 1.
        frames: number of images in a row; at least 2.
    Raises:
        ValueError: if either is smaller.
    """

    def __init__(self, rows: PositiveCount = 4, frames: PositiveCount = 9) -> None:
        if rows < 1:
            raise ValueError(f"mode.rows must be at least 1 (got {rows}): give 4")
        if frames < 2:
            raise ValueError(f"mode.frames must be at least 2 (got {frames}): a row needs both ends")
        self.rows, self.frames = rows, frames

    def draw(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        """Write the pictures of this mode into a folder.

        Args:
            parts: a fitted run.
            folder: an existing folder.
            seed: seed of the noise; row i depends on (seed, i).
            device: the device to compute on.
        Raises:
            ValueError: if the samples are not images.
        """
        modelled = parts.denoiser.data_shape
        shape = parts.data.sample_shape if len(modelled) == 3 else modelled
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"data must be images of 1 or 3 channels for a mode (got shape {shape}): leave mode out")
        for module in parts.modules:
            module.to(device).eval()
        self.picture(parts, folder, seed, device)

    @abstractmethod
    def picture(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        """Does the work of `draw`, after the networks have been moved to ``device`` and put in eval mode."""


class Interpolation(Mode):
    """Samples that start on the great circle between two noises; all noise added later is the same along a row."""

    def ends(self, parts: Parts, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The starting noises at both ends of the rows, each ``[rows, *event]``."""
        shape, rows = parts.denoiser.data_shape, self.rows
        std = parts.denoiser.schedule.prior_std(parts.denoiser.levels(parts.times[-1])).to(device, torch.float32)
        first, last = (NoiseStream(seed, range(i * rows, (i + 1) * rows), shape, device) for i in range(2))
        return std * first.draw(), std * last.draw()

    def path(self, parts: Parts, ends: tuple[Tensor, Tensor], seed: int, device: torch.device) -> Tensor:
        """The images of all rows, ``[rows, frames, *event]``."""
        drawn = []
        labels = parts.labels(self.rows, seed)
        denoiser, condition = parts.denoiser, None if labels is None else labels.to(device)
        for frame in range(self.frames):
            noise = NoiseStream(seed, range(2 * self.rows, 3 * self.rows), denoiser.data_shape, device)
            start = slerp(*ends, frame / (self.frames - 1))
            x_0 = parts.sampler.sample(
                denoiser, parts.strategy, parts.times, noise, guidance=parts.guidance, condition=condition, start=start
            )
            drawn.append(denoiser.data_range.to_unit(x_0))
        return torch.stack(drawn, 1)

    def picture(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        images = self.path(parts, self.ends(parts, seed, device), seed, device)
        save_png(to_picture(images, parts.data), folder / "interpolation.png")
        log.info("%d rows of %d images: %s", self.rows, self.frames, folder / "interpolation.png")


class ImageInterpolation(Interpolation):
    """Interpolates between two images of the data, which are shown at both ends of each row.

    The error of encoding and decoding them is logged and written to ``interpolation.json``.

    Args:
        rows, frames: as in `Mode`.
        corrections: as in `optcov.sampler.invert`.
    """

    def __init__(self, rows: PositiveCount = 4, frames: PositiveCount = 9, corrections: Count = 3) -> None:
        super().__init__(rows, frames)
        if corrections < 0:
            raise ValueError(f"mode.corrections must not be negative (got {corrections}): give 0, 1 or more iterations")
        self.corrections = corrections

    def picture(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        if parts.num_classes is not None:
            raise ValueError(
                "mode must not be interpolate_images for a run with classes (got one), because no class lies between "
                "two images: give a run with conditional=false and guidance=none, or mode=interpolate"
            )
        if not parts.data.data_range.is_bounded:
            raise ValueError("mode = interpolate_images needs data of pixels (got latents): give mode=interpolate")
        images = parts.data.calibration(2 * self.rows).to(device)
        if len(images) < 2 * self.rows:
            raise ValueError(
                f"mode.rows must be at most half the number of images, {len(images)} (got {self.rows}): give fewer rows"
            )
        encoded = invert(parts.denoiser, parts.denoiser.data_range.from_unit(images), parts.times, self.corrections)
        path = self.path(parts, (encoded[: self.rows], encoded[self.rows :]), seed, device)
        ends = torch.stack([images[: self.rows], images[self.rows :]], 1)
        save_png(to_picture(torch.cat([ends[:, :1], path, ends[:, 1:]], 1), parts.data), folder / "interpolation.png")
        error = float((path[:, [0, -1]] - ends).square().mean().sqrt()) * 127.5
        told = {"inversion_rmse_grey_levels": error, "images": 2 * self.rows, "corrections": self.corrections}
        write_atomically(folder / "interpolation.json", json.dumps(told, indent=2) + "\n")
        log.info("inversion error: %.3g of 255 grey levels RMS over %d images: %s", error, 2 * self.rows, folder)


class TrajectoryPicture(Mode):
    """Shows x_t and the predicted x_0 at each update of a few samples."""

    def picture(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        noise = NoiseStream(seed, range(self.rows), parts.denoiser.data_shape, device)
        labels = parts.labels(self.rows, seed)
        states = parts.sampler.steps(
            parts.denoiser,
            parts.strategy,
            parts.times,
            noise,
            guidance=parts.guidance,
            condition=None if labels is None else labels.to(device),
        )
        seen: list[Tensor] = []  # [2, rows, *event] each
        for state in states:
            if state.prediction is not None:
                seen.append(torch.stack([state.prediction.x_t, state.prediction.x0]))
        calls = torch.stack([*seen, torch.stack([state.x, state.x])])  # [updates + 1, 2, rows, *event]
        calls = parts.denoiser.data_range.to_unit(calls)
        shown = torch.linspace(0, len(calls) - 1, min(self.frames, len(calls))).round().long()
        seen_at = calls[shown.to(device)].permute(2, 1, 0, 3, 4, 5).flatten(0, 1)
        save_png(to_picture(seen_at, parts.data), folder / "trajectory.png")
        first, *others = [to_picture(call, parts.data) for call in calls]
        duration = [max(40, 3000 // len(calls))] * len(others) + [1500]  # ms; the last frame stays longer
        with atomic_write(folder / "trajectory.gif") as partial:
            first.save(partial, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
        log.info("%d updates of %d samples: %s", len(seen), self.rows, folder / "trajectory.gif")


class UncertaintyPicture(Mode):
    """Shows what a strategy leaves unknown of held-out images: noisy, predicted, error and standard deviation.

    ``uncertainty.json`` holds, at each time, how often the central intervals of pixels hold the truth, and the mean
    square of (x_0 - m) / std, over ``images`` images.

    Args:
        rows: images shown.
        frames: of a row, four at each time; a multiple of 4.
        images: images of the test split that are counted, at least ``rows``.
    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, rows: PositiveCount = 4, frames: PositiveCount = 12, images: PositiveCount = 256) -> None:
        super().__init__(rows, frames)
        if frames % 4:
            raise ValueError(f"mode.frames must be a multiple of 4 (got {frames}): give four images a time, such as 12")
        if images < rows:
            raise ValueError(f"mode.images must be at least mode.rows = {rows} (got {images}): give more images")
        self.images = images

    def picture(self, parts: Parts, folder: Path, seed: int, device: torch.device) -> None:
        data, denoiser = parts.data, parts.denoiser
        clean = denoiser.data_range.from_unit(data.normalize(data.load("test")[: self.images]).to(device))
        labels = None if denoiser.num_classes is None else data.labels("test")[: self.images].to(device)
        noise, columns, told = NoiseStream(seed, range(len(clean)), clean.shape[1:], device).draw(), [], []
        for t in torch.linspace(0, 1, self.frames // 4 + 2)[1:-1].tolist():
            x_t = denoiser.diffuse(clean, noise, denoiser.levels(torch.tensor(t, dtype=torch.float64)).to(device))
            found = uncertainty(denoiser, parts.strategy, x_t, t, condition=labels)
            widths = {f"c{level}": float(found.covers(clean, level / 100).float().mean()) for level in (50, 90, 95)}
            squares = ((clean - found.mean) / found.std.clamp(min=1e-12)).square().mean()
            told.append({"t": t, **widths, "mean_square": float(squares)})
            columns += [x_t, found.mean, *(self._dark(each) for each in ((clean - found.mean).abs(), found.std))]
        shown = [denoiser.data_range.to_unit(column[: self.rows]) for column in columns]
        save_png(to_picture(torch.stack(shown, 1), data), folder / "uncertainty.png")
        write_atomically(folder / "uncertainty.json", json.dumps(told, indent=2) + "\n")
        log.info("what is unknown of %d images at %d times: %s", len(clean), len(told), folder / "uncertainty.png")

    @staticmethod
    def _dark(size: Tensor) -> Tensor:
        """A size on [0, 1] as an image, 0 black."""
        return 2 * size.clamp(max=1) - 1
