"""Does a network mean what was stated of it?  Its error on noised data, against that of neighbouring conventions."""

from __future__ import annotations

import math
import time as clock
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optcov.adapter.images import data
from optcov.adapter.time import FEEDS, TimeFeed, time_feed
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, device_of
from optcov.parameterization import X0, Eps, Parameterization, Score, V, Velocity

TIMES = (0.004, 0.02, 0.06, 0.2, 0.5, 0.8)  # where errors are compared
SECONDS = 20.0  # what a check may take
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5))


@dataclass(frozen=True)
class Convention:
    """One way to ask a network and to read its answer."""

    words: str
    time: TimeFeed
    parameterization: Parameterization
    data_range: DataRange


def check_conventions(denoiser: Denoiser, images: Any = None, labels: Tensor | None = None) -> str | None:
    """Warn if a network fits data better under another convention than the stated one.

    What is compared is the error of the noise, ``||eps - eps_net||^2``, at a few times, in which the best predictor of
    every convention is the same conditional mean: the mean over times of its logarithm, over the same images and noise.

    Args:
        denoiser: with the stated conventions.
        images: clean data in its range; smooth random images where None, which show gross mistakes only.
        labels: of the images.
    Returns:
        The sentence of the warning; None if nothing fits better.
    """
    known, began = images is not None, clock.monotonic()
    x_0 = data(denoiser, images)[:16] if known else smooth(denoiser, 8)
    device = device_of(denoiser)
    x_0 = x_0.to(device)
    condition = None
    if denoiser.num_classes is not None:
        condition = torch.zeros(len(x_0), dtype=torch.long) if labels is None else labels[: len(x_0)]
        condition = condition.to(device)
    time = denoiser.time or denoiser.network_time
    stated = Convention("", time, denoiser.parameterization, denoiser.data_range)
    ours = _errors(denoiser, stated, x_0, condition)
    each = clock.monotonic() - began
    best, gain = None, 0.0
    for other in _neighbours(denoiser, stated, known):
        if each * 2 > SECONDS - (clock.monotonic() - began):
            break
        theirs = _errors(denoiser, other, x_0, condition)
        difference = (ours - theirs).mean(1)  # of each image, mean over times
        mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
        if mean > max(gain, 4 * error, 0.005 if known else 0.3):
            best, gain = other.words, mean
    if best is None:
        return None
    words = (
        f"the network fits {'these images' if known else 'smooth random images'} better with {best}: its error of the "
        f"noise is {1 - math.exp(-gain):.1%} smaller than as stated: compare samples of both"
    )
    warnings.warn(words, stacklevel=4)
    return words


def _neighbours(denoiser: Denoiser, stated: Convention, known: bool) -> list[Convention]:
    """Conventions that differ from the stated one in one place."""
    found = []
    level = denoiser.levels(torch.tensor(TIMES, dtype=torch.float64))
    fed = stated.time(level)
    for name in FEEDS:
        feed = time_feed(name, denoiser.schedule)
        if feed(level).isfinite().all() and (feed(level) - fed).abs().max() > 1e-6:
            found.append(Convention(f'time="{name}"', feed, stated.parameterization, stated.data_range))
    if stated.parameterization.c_in(level) is None:
        meanings: list[tuple[str, Parameterization]] = [
            ("eps", Eps()), ("x0", X0()), ("v", V()), ("velocity", Velocity()), ("score", Score())
        ]  # fmt: skip
        for word, meaning in meanings:
            try:
                meaning.check(denoiser.schedule)
            except ValueError:
                continue
            if type(meaning) is not type(stated.parameterization):
                found.append(Convention(f'prediction="{word}"', stated.time, meaning, stated.data_range))
    if known and stated.data_range.is_bounded:
        for low, high in RANGES:
            if (low, high) != (stated.data_range.low, stated.data_range.high):
                other = DataRange(low, high)
                found.append(Convention(f"data_range=({low:g}, {high:g})", stated.time, stated.parameterization, other))
    return found


@torch.no_grad()
def _errors(denoiser: Denoiser, convention: Convention, x_0: Tensor, condition: Tensor | None) -> Tensor:
    """``log ||eps - eps_net||^2 / d`` of each image at each time, ``[n, len(TIMES)]``."""
    asked = Denoiser(denoiser.network, denoiser.schedule, convention.parameterization, data_range=convention.data_range)
    asked.time = convention.time
    if convention.data_range != denoiser.data_range:
        x_0 = convention.data_range.from_unit(denoiser.data_range.to_unit(x_0))
    errors = []
    for i, t in enumerate(TIMES):
        n = max(1, round(t * denoiser.schedule.num_steps))
        level = denoiser.levels(torch.full((len(x_0),), n / denoiser.schedule.num_steps, dtype=torch.float64)).to(
            x_0.device
        )
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(i)).to(x_0.device)
        eps_net = asked(asked.diffuse(x_0, eps, level), level, condition).eps
        error = ((eps - eps_net) ** 2).flatten(1).mean(1).double()
        errors.append(error.nan_to_num(nan=1e6, posinf=1e6).clamp(1e-12, 1e6).log())
    return torch.stack(errors, 1).cpu()


def smooth(denoiser: Denoiser, count: int) -> Tensor:
    """Random images of low frequencies in the denoiser's range, ``[count, *event]``; noise of the path's scale else."""
    shape = denoiser.data_shape
    generator = torch.Generator().manual_seed(0)
    if len(shape) != 3:
        return denoiser.data_range.from_unit(torch.rand(count, *shape, generator=generator) * 2 - 1)
    coarse = torch.randn(count, shape[0], 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)
    return denoiser.data_range.from_unit((images / 1.5).tanh())
