"""The functions for notebooks, which work on any network: `load`, `fit`, `sample` and `bits_per_dim`.

`restore` is in `optcov.restoring`.

They take objects or the names of options in ``conf/``, and need neither Lightning nor Hydra.  Images and samples are in
the network's own range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optcov.adapter.images import Images, data
from optcov.adapter.load import load
from optcov.denoiser import Denoiser, device_of
from optcov.fitting import train
from optcov.guidance import Guidance
from optcov.likelihood.terms import check_grey_levels, half_bin
from optcov.metric.base import Score
from optcov.registry import options, resolve, settings_of
from optcov.sampler import Sampler
from optcov.sampler import sample as draw
from optcov.seeds import Stream, derive_seed
from optcov.trajectory import ListTrajectory, Trajectory
from optcov.variance.base import Calibrated, Clean, Trained, VarianceStrategy
from optcov.variance.saved import check_fits, load_strategy

__all__ = ["bits_per_dim", "fit", "load", "load_strategy", "sample"]


def fit(
    strategy: str | VarianceStrategy,
    denoiser: Denoiser,
    images: Images | None = None,
    steps: int | None = None,
    *,
    labels: Tensor | None = None,
    label_dropout: float = 0.1,
    batch_size: int = 64,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> VarianceStrategy:
    """Fit a variance strategy to a denoiser, by one pass over images, by gradient steps, or not at all, as it requires.

    Args:
        strategy: the name of an option of ``var``, or an object, which is fitted in place.
        denoiser: a denoiser from `load`; it is not changed.
        images: clean data, see `Images`; not needed by strategies that have nothing to fit.
        steps: number of gradient steps for a strategy that is trained; None for 2000.
        labels: class of each image, int64 ``[n]``; only for class-conditional denoisers.
        label_dropout: share of labels hidden during training; none are hidden from a network without a null class.
        batch_size: images per gradient step.
        lr: learning rate of Adam, which falls to 0 over the last third of the steps.
        seed: seed of initial weights, order, times and noise.
        progress: whether to show progress bars.
        settings: settings of the strategy, such as ``num_images=256`` for ``analytic`` or ``head="complex"`` for a
            trained strategy.
    Returns:
        The strategy, in eval mode, on the denoiser's device.
    Raises:
        ValueError: if a value is not valid; the message is one sentence.
    """
    if not isinstance(strategy, str | VarianceStrategy):
        raise ValueError(
            f"strategy must be the name of an option of var, or an object (got {type(strategy).__name__}): give such "
            'as optcov.fit("npr_dpm", denoiser, images)'
        )
    device = device_of(_denoiser(denoiser).eval())
    if isinstance(strategy, str):
        if isinstance(settings.get("head"), str):
            settings["head"] = resolve("head", settings["head"])
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, Stream.VARIANCE_WEIGHTS))
            strategy = resolve("var", strategy, denoiser=denoiser, **_with_head(strategy, denoiser, settings))
    else:
        resolve("strategy", strategy, **settings)
    assert isinstance(strategy, VarianceStrategy)
    strategy.to(device).eval()
    if not strategy.needs_fit:
        if steps is not None:
            raise ValueError(
                f"steps must be left out for {type(strategy).__name__} (got {steps}): it needs no training"
            )
        return strategy
    if images is None:
        raise ValueError(f"images must be given to fit {type(strategy).__name__} (got none): give clean data, [n, ...]")
    x_0 = data(denoiser, images)
    labels = _labels(denoiser, labels, len(x_0))
    if isinstance(strategy, Calibrated):
        if steps is not None:
            raise ValueError(
                f"steps must be left out for {type(strategy).__name__} (got {steps}), which takes one pass over "
                "images: give num_images to say how many"
            )
        order = torch.randperm(len(x_0), generator=torch.Generator().manual_seed(derive_seed(seed, Stream.EPOCH)))
        chosen = order[: strategy.num_images]
        strategy.progress = progress
        strategy.calibrate(
            denoiser, [x_0[chosen].to(device)], seed, None if labels is None else labels[chosen].to(device)
        )
        return strategy
    steps = _whole("steps", 2000 if steps is None else steps, "the number of gradient steps, such as 2000")
    batch_size = _whole("batch_size", batch_size, "the number of images of a step, such as 64")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive (got {lr}): give Adam's learning rate, such as 0.01")
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"label_dropout must lie between 0 and 1 (got {label_dropout}): give a share, such as 0.1")
    assert isinstance(strategy, Trained)
    train(
        strategy,
        denoiser,
        x_0,
        steps,
        labels=labels,
        label_dropout=label_dropout if denoiser.has_null_label else 0.0,
        batch_size=min(batch_size, len(x_0)),
        lr=lr,
        seed=seed,
        progress=progress,
    )
    return strategy


def sample(
    denoiser: Denoiser,
    strategy: VarianceStrategy | str | None = None,
    num_steps: int = 10,
    count: int = 16,
    sampler: str | Sampler = "ddpm",
    trajectory: str | Trajectory | Iterable[float] = "even",
    seed: int = 0,
    *,
    labels: int | Tensor | Iterable[int] | None = None,
    guidance: str | Guidance | None = None,
    images: Images | None = None,
    batch_size: int = 256,
    progress: bool = True,
    **settings: Any,
) -> Tensor:
    """Draw samples.

    Args:
        denoiser: a denoiser from `load`.
        strategy: a strategy from `fit`, or the name of one that has nothing to fit; None for ``beta_tilde``.
        num_steps: K, the number of times visited; most samplers make one network call at each.
        count: number of samples.
        sampler: the name of an option of ``sampler``, or an object, whose ``num_steps`` then applies.
        trajectory: the times: the name of an option, an object, or the K times themselves, ascending in (0, 1].
        seed: sample i depends only on (seed, i), whatever the batch size.
        labels: one class for all samples, or the class of each, ``[count]``; only for class-conditional denoisers.
        guidance: the name of an option of ``guidance``, or an object; None for no guidance.
        images: clean data, see `Images`; only for what is measured: trajectories such as ``optimal``, and samplers with
            ``noise="matched"`` or ``"balanced"``.
        batch_size: maximum number of samples drawn at once.
        progress: whether to show a progress bar.
        settings: settings of the sampler, such as ``eta=0.5`` for ``ddim``.
    Returns:
        float32 ``[count, *event]``, nominally in the denoiser's range, on the CPU.
    Raises:
        ValueError: if a value is not valid; the message is one sentence.
    """
    strategy = fitted(strategy, denoiser)
    num_steps = _whole("num_steps", num_steps, "a number from 1 to N")
    if isinstance(sampler, str):
        settings = {"num_steps": num_steps, **settings}
    sampler = resolve("sampler", sampler, **settings)
    assert isinstance(sampler, Sampler)
    if isinstance(guidance, str):
        guidance = resolve("guidance", guidance, denoiser=denoiser, num_classes=denoiser.num_classes)
    assert guidance is None or isinstance(guidance, Guidance)
    sampler.check(strategy, denoiser.schedule)
    known = None
    if labels is not None:
        each = torch.as_tensor(labels if isinstance(labels, int | np.integer | Tensor) else list(labels))
        known = _labels(denoiser, each.expand(count) if each.ndim == 0 else each, count)
    times = times_of(denoiser, strategy, trajectory, sampler.num_steps, seed, images)
    if sampler.num_images and images is not None:
        clean = data(denoiser, images)[: sampler.num_images].to(device_of(denoiser))
        classes = None if known is None else known[torch.arange(len(clean)) % count].to(clean.device)
        sampler.fit(denoiser, strategy, times, Clean([clean], seed, classes))
    return draw(
        denoiser, strategy, sampler, times, count, seed, batch_size, device_of(denoiser), progress, known, guidance
    )


def bits_per_dim(
    denoiser: Denoiser,
    strategy: VarianceStrategy | str | None,
    images: Images,
    num_steps: int = 10,
    trajectory: str | Trajectory | Iterable[float] = "even",
    seed: int = 0,
    *,
    unit: str = "bits",
    labels: Tensor | None = None,
    batch_size: int = 256,
    progress: bool = True,
    **settings: Any,
) -> Score:
    """Compute the variational bound on ``-log2 p(x_0)`` per dimension.

    Args:
        denoiser, strategy, num_steps, trajectory, seed, batch_size, progress: as in `sample`.
        images: see `Images`; for bits, data on the grey levels of the denoiser's range, which define each pixel's bin.
        unit: ``bits`` for the probability of data on grey levels; ``nats`` for the density of continuous data, such as
            latents.  These have no bins and no decoder: the last term is the density of x_0 given x_1, and the value
            may be negative.  The two units are not comparable.
        labels: class of each image, int64 ``[n]``; only for class-conditional denoisers.
        settings: settings of the metric ``nll``, such as ``clip_x0=False``.
    Returns:
        ``value`` and ``standard_error``, in bits/dim or nats/dim; ``details`` has the mean of each term, and
        ``table()`` gives them as rows.
    Raises:
        ValueError: if a value is not valid, or the data have no grey levels; the message is one sentence.
    """
    from optcov.metric import ModelMetric, VariationalDensity, VariationalNLL

    kinds: dict[str, type[ModelMetric]] = {"bits": VariationalNLL, "nats": VariationalDensity}
    if unit not in kinds:
        raise ValueError(f'unit must be "bits" or "nats" (got {unit!r}): data on grey levels have bits')
    strategy = fitted(strategy, denoiser)
    metric = kinds[unit](**settings)
    x_0 = data(denoiser, images)
    if len(x_0) < 2:
        raise ValueError("images must be at least two (got 1): a standard error needs more than one")
    if unit == "bits":
        _check_grey_levels(denoiser, x_0)
    times = times_of(denoiser, strategy, trajectory, num_steps, seed, x_0)
    labels = _labels(denoiser, labels, len(x_0))
    return metric.measure(denoiser, strategy, times, x_0, seed, batch_size, labels, progress)


def _with_head(name: str, denoiser: Denoiser, settings: dict[str, Any]) -> dict[str, Any]:
    """Add to the settings the head for a network without a feature map; other networks keep the option's head."""
    head = getattr(denoiser.network, "default_head", None)
    if head is None or "head" in settings:
        return settings
    if name not in options("var") or "head" not in settings_of("var", name):
        return settings
    return settings | {"head": resolve("head", head)}


def fitted(strategy: VarianceStrategy | str | None, denoiser: Denoiser) -> VarianceStrategy:
    """A strategy that is ready for use, in eval mode, on the denoiser's device."""
    _denoiser(denoiser).eval()
    if strategy is None or isinstance(strategy, str):
        name = strategy or "beta_tilde"
        strategy = resolve("var", name, denoiser=denoiser, **_with_head(name, denoiser, {}))
        assert isinstance(strategy, VarianceStrategy)
        if strategy.needs_fit:
            raise ValueError(
                f"strategy must be fitted (got the name {name!r}): give optcov.fit({name!r}, denoiser, images)"
            )
    assert isinstance(strategy, VarianceStrategy)
    check_fits(denoiser, strategy)
    return strategy.to(device_of(denoiser)).eval()


def times_of(
    denoiser: Denoiser,
    strategy: VarianceStrategy,
    trajectory: str | Trajectory | Iterable[float],
    num_steps: int,
    seed: int,
    images: Images | None,
) -> Tensor:
    """The times of a trajectory, float64 ``[K]``; a trajectory given by name is fitted if it needs to be."""
    if isinstance(trajectory, str):
        name, trajectory = trajectory, resolve("trajectory", trajectory)
        assert isinstance(trajectory, Trajectory)
        trajectory.check(denoiser.schedule, num_steps)
        if trajectory.num_images:
            if images is None:
                raise ValueError(
                    f"images must be given for trajectory={name!r}, which is measured on clean data (got none)"
                )
            clean = data(denoiser, images)[: trajectory.num_images].to(device_of(denoiser))
            trajectory.fit(denoiser, strategy, Clean([clean], seed))
    if isinstance(trajectory, Trajectory):
        trajectory.check(denoiser.schedule, num_steps)
        return trajectory.times(denoiser.schedule, num_steps)
    listed = ListTrajectory(list(trajectory))
    return listed.times(denoiser.schedule, len(listed))


def _denoiser(denoiser: Any) -> Denoiser:
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"denoiser must be one from optcov.load (got {type(denoiser).__name__}): give optcov.load(network, ...)"
        )
    return denoiser


def _whole(name: str, value: Any, remedy: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        is_low = isinstance(value, int | np.integer) and not isinstance(value, bool)
        raise ValueError(
            f"{name} must be {'at least 1' if is_low else 'a whole number'} (got {value!r}): give {remedy}"
        )
    return int(value)


def _labels(denoiser: Denoiser, labels: Tensor | None, count: int) -> Tensor | None:
    """Check the labels and return them as int64 on the CPU."""
    if labels is None:
        return None
    if denoiser.num_classes is None:
        raise ValueError("labels must be left out (got labels): the network knows no classes")
    labels = torch.as_tensor(labels).cpu()
    if labels.shape != (count,):
        raise ValueError(f"labels must be one per sample, [{count}] (got {list(labels.shape)})")
    if not torch.equal(labels.long().to(labels.dtype), labels):
        raise ValueError(f"labels must be whole numbers (got {labels.dtype}): give the index of each sample's class")
    labels = labels.long()
    top = denoiser.num_classes if denoiser.has_null_label else denoiser.num_classes - 1
    if int(labels.min()) < 0 or int(labels.max()) > top:
        null = f", or be {denoiser.num_classes}, the null label" if denoiser.has_null_label else ""
        raise ValueError(
            f"labels must lie between 0 and {denoiser.num_classes - 1}{null} (got {int(labels.min())} to "
            f"{int(labels.max())})"
        )
    return labels


def _check_grey_levels(denoiser: Denoiser, x_0: Tensor) -> None:
    """Refuse data that lie between grey levels, because their bins would be meaningless.

    Raises:
        ValueError: if there are such data; the message is one sentence.
    """
    data_range = denoiser.data_range
    check_grey_levels(data_range)
    off = ((x_0 - data_range.ends(x_0)[0]) / (2 * half_bin(data_range, x_0))).double()
    share = float(((off - off.round()).abs() > 0.05).double().mean())
    if share > 0:
        raise ValueError(
            f"images must lie on the {data_range.num_levels} grey levels of the data for bits/dim ({share:.1%} of the "
            "pixels do not): give uint8 images, or data that were not resized or augmented after decoding"
        )
