"""Checks the stated conventions of a network by comparing its error on noised data with that of other conventions.

The error is `||eps - eps_net||^2` on the same images and noise.  Whatever a network predicts, its best prediction is
the same conditional mean `E[eps|x_t]`, so the errors of two interpretations, or of two time feeds, differ by their
distances from it.  Data with another range pose a different problem at the same t: since
`x_t / alpha_t = x_0 + eps / SNR^{1/2}`, data on half the scale pose the same problem at four times the SNR.  Two
ranges are therefore compared at equal `SNR w^2`, where w is half the width of the range; eps and its conditional mean
are equal there as well.

Time feeds that differ by less than a step, such as n and 999 t of N = 1000, are not told apart: their errors differ by
less than those of any trained network.
"""

from __future__ import annotations

import math
import time as clock
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optcov.adapter.images import data
from optcov.adapter.time import FEEDS, TimeFeed, time_feed
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, device_of
from optcov.parameterization import X0, Eps, Parameterization, Score, V, Velocity
from optcov.schedule.levels import NoiseLevels
from optcov.seeds import Stream, derive_seed

FIRST_STEPS = 4  # n = 1..4, where the feeds n and n - 1 differ most
LOG_SNR = (6.0, 4.0, 2.0, 0.0)  # for data on [-1, 1]; at more noise, an imperfect network may prefer other times
PIXELS = 16384  # per level, over all images; determines the accuracy of a comparison
SECONDS = 20.0  # longest time for a check on an idle machine; a slow network is checked on fewer images
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5))
SMALLEST_GAIN = {"time": 0.001, "prediction": 0.02, "range": 0.05}  # as a share of the error
SMALLEST_GAIN_ON_SMOOTH = 0.3  # images unlike the data may fit another convention better by chance


@dataclass(frozen=True)
class Convention:
    """One way to call a network and to interpret its output.

    Args:
        kind: how it differs from the stated convention, a key of `SMALLEST_GAIN`.
        words: the argument of `load` that states it.
        time, parameterization, data_range: as in `Denoiser`.
        sign: factor of the network's output, 1 or -1.
    """

    kind: str
    words: str
    time: TimeFeed
    parameterization: Parameterization
    data_range: DataRange
    sign: int = 1


def check_conventions(denoiser: Denoiser, images: Any = None, labels: Tensor | None = None) -> str | None:
    """Warn if a network fits data better under another convention than the stated one.

    Args:
        denoiser: the denoiser with the stated conventions.
        images: clean data in its range; None for smooth random images, which reveal only gross mistakes.
        labels: class of each image, int64 `[n]`.
    Returns:
        The text of the warning; None if no other convention fits better.
    """
    known, began = images is not None, clock.thread_time()
    count = min(256, max(16, PIXELS // math.prod(denoiser.data_shape)))
    x_0 = data(denoiser, images) if known else smooth(denoiser, 16)
    rows = torch.arange(count) % len(x_0)
    device = device_of(denoiser)
    condition = None
    if denoiser.num_classes is not None:
        condition = (torch.zeros(len(x_0), dtype=torch.long) if labels is None else torch.as_tensor(labels))[rows]
        condition = condition.to(device)
    trial = Trial(denoiser, x_0[rows].to(device), condition)
    time = denoiser.time or denoiser.network_time
    stated = Convention("", "", time, denoiser.parameterization, denoiser.data_range)
    ours, others = trial.errors(stated), _neighbours(denoiser, stated, known)
    cost = (clock.thread_time() - began) * len(others)
    if cost > SECONDS:
        trial = trial.first(max(4, int(count * SECONDS / cost)))
        ours = trial.errors(stated)
    best, most = None, 0.0
    for other in others:
        try:
            theirs = trial.errors(other)
        except Exception:  # such as a time that is not in its table
            continue
        levels = [i for i in ours if i in theirs]
        if not levels:
            continue
        gains = torch.stack([(ours[i] - theirs[i]) / ours[i].mean() for i in levels]).mean(0)  # of each image
        gain, error = float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))
        least = SMALLEST_GAIN[other.kind] if known else SMALLEST_GAIN_ON_SMOOTH
        if gain > max(1.05 * most, 4 * error, least):  # of two that fit as well, the first
            best, most = other.words, gain
    if best is None:
        return None
    words = (
        f"the network fits {'these images' if known else 'smooth random images'} better with {best}: its error of the "
        f"noise is {most:.1%} smaller than as stated: compare samples of both"
    )
    warnings.warn(words, stacklevel=3)
    return words


@dataclass
class Trial:
    """Images and noise on which conventions are tried; one network call serves all interpretations of its output.

    Args:
        denoiser: the denoiser with the stated conventions.
        x_0: data in its range, `[n, *event]`.
        condition: class of each image, `[n]`; only for class-conditional networks.
    """

    denoiser: Denoiser
    x_0: Tensor
    condition: Tensor | None
    asked: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def first(self, count: int) -> Trial:
        """The same trial with only the first `count` images."""
        return Trial(self.denoiser, self.x_0[:count], None if self.condition is None else self.condition[:count])

    def levels(self, data_range: DataRange) -> dict[str, NoiseLevels]:
        """The levels at which errors are compared; equal names pose the same problem for data of any range."""
        schedule = self.denoiser.schedule
        found = {}
        if data_range == self.denoiser.data_range:
            for n in range(1, min(FIRST_STEPS, schedule.num_steps) + 1):
                found[f"n = {n}"] = n
        scale = 1.0 if data_range.width is None else data_range.width / 2
        for log_snr in LOG_SNR:
            wanted = torch.tensor(log_snr - 2 * math.log(scale), dtype=torch.float64)
            n = int((schedule.time(wanted) * schedule.num_steps).round())
            if n >= 1 and abs(schedule.log_snr(torch.tensor(n / schedule.num_steps)) - wanted) < 0.5:
                found[f"log SNR = {log_snr}"] = n
        t = {name: torch.full((len(self.x_0),), n / schedule.num_steps).double() for name, n in found.items()}
        return {name: self.denoiser.levels(each).to(self.x_0.device) for name, each in t.items()}

    @torch.no_grad()
    def errors(self, convention: Convention) -> dict[str, Tensor]:
        """`||eps - eps_net||^2 / d` for each image, by level; float64 `[n]` on the CPU."""
        meaning, found = convention.parameterization, {}
        asked = Denoiser(self.denoiser.network, self.denoiser.schedule, meaning, time=convention.time)
        x_0 = convention.data_range.from_unit(self.denoiser.data_range.to_unit(self.x_0))
        for i, (name, level) in enumerate(self.levels(convention.data_range).items()):
            seed = derive_seed(0, Stream.CURVE, i)  # none that a user may have drawn the images with
            generator = torch.Generator().manual_seed(seed)
            eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
            x_t = asked.diffuse(x_0, eps, level)
            key = (name, convention.time, convention.data_range, meaning if meaning.c_in(level) is not None else None)
            if key not in self.asked:
                self.asked[key] = asked(x_t, level, self.condition).output
            error = (
                ((eps - meaning.eps(x_t, convention.sign * self.asked[key], level)) ** 2).flatten(1).mean(1).double()
            )
            found[name] = error.nan_to_num(nan=1e6, posinf=1e6).clamp(max=1e6).cpu()
        return found


def _neighbours(denoiser: Denoiser, stated: Convention, known: bool) -> list[Convention]:
    """The conventions that differ from the stated one in a single respect, the expensive ones last."""
    found = []
    meanings: list[tuple[str, Parameterization]] = [
        ("eps", Eps()), ("x0", X0()), ("v", V()), ("velocity", Velocity()), ("score", Score())
    ]  # fmt: skip
    for word, meaning in meanings:
        try:
            meaning.check(denoiser.schedule)
        except ValueError:
            continue
        if type(meaning) is not type(stated.parameterization):
            words = f'prediction="{word}"'
            found.append(Convention("prediction", words, stated.time, meaning, stated.data_range))
    level = denoiser.levels(denoiser.schedule.grid())
    fed = stated.time(level)
    negative = "the negative of its output"
    found.insert(0, Convention("prediction", negative, stated.time, stated.parameterization, stated.data_range, -1))
    feeds: list[tuple[list[str], TimeFeed]] = []  # each with the names of those that are not told apart from it
    for name in FEEDS:
        feed = time_feed(name, denoiser.schedule)
        if not feed(level).isfinite().all() or _is_alike(feed(level), fed):
            continue
        alike = next((names for names, other in feeds if _is_alike(feed(level), other(level))), None)
        if alike is None:
            feeds.append(([name], feed))
        else:
            alike.append(name)
    for names, feed in feeds:
        words = " or ".join(f'"{name}"' for name in names)
        found.append(Convention("time", f"time={words}", feed, stated.parameterization, stated.data_range))
    if known and stated.data_range.is_bounded and not stated.data_range.is_per_channel:
        for low, high in RANGES:
            if (low, high) != (stated.data_range.low, stated.data_range.high):
                words, other = f"data_range=({low:g}, {high:g})", DataRange(low, high)
                found.append(Convention("range", words, stated.time, stated.parameterization, other))
    ends = float(fed[0] + fed[-1])
    if known and math.isfinite(ends):  # others let time run from noise to data, and predict data minus noise

        def backwards(level: NoiseLevels) -> Tensor:
            return ends - stated.time(level)

        for sign, words in ((1, "time="), (-1, "the negative of its output and time=")):
            words += f"lambda level: {ends:g} - ... (it runs from noise to data)"
            found.append(Convention("prediction", words, backwards, stated.parameterization, stated.data_range, sign))
    return found


def _is_alike(first: Tensor, second: Tensor) -> bool:
    """Whether two feeds differ by at most a step, and hardly where errors show, at the grid's start: 999t and n."""
    step = (first[-1] - first[0]).abs() / len(first)
    off = (first - second).abs() / step
    return bool(off.max() < 1.01) and bool(off[: max(1, len(off) // 10)].max() < 0.2)


def smooth(denoiser: Denoiser, count: int) -> Tensor:
    """Random images of low frequencies in the denoiser's range, `[count, *event]`; noise of the path's scale else."""
    shape = denoiser.data_shape
    generator = torch.Generator().manual_seed(0)
    if len(shape) != 3:
        return denoiser.data_range.from_unit(torch.rand(count, *shape, generator=generator) * 2 - 1)
    coarse = torch.randn(count, shape[0], 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)
    return denoiser.data_range.from_unit((images / 1.5).tanh())
