"""``optcov.load`` makes a denoiser from any network; conventions are stated by the user or read, never guessed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optcov.adapter.conventions import Conventions
from optcov.adapter.network import AdaptedNetwork, find_features, inner
from optcov.adapter.time import TimeFeed, time_feed
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, device_of
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.registry import make
from optcov.schedule import BetaSchedule, FunctionSchedule, NoiseSchedule

log = logging.getLogger(__name__)

PREDICTIONS: dict[str, Callable[[], Parameterization]] = {
    "eps": Eps,
    "epsilon": Eps,
    "noise": Eps,
    "x0": X0,
    "sample": X0,
    "v": V,
    "v_prediction": V,
    "velocity": Velocity,
    "flow": Velocity,
    "score": Score,
    "edm": EDM,
}

ScheduleLike = NoiseSchedule | str | Sequence[Any] | Tensor | Any


def load(
    source: Any,
    *,
    shape: Sequence[int] | None = None,
    prediction: str | Parameterization | None = None,
    schedule: ScheduleLike | None = None,
    time: str | TimeFeed | None = None,
    data_range: DataRange | Sequence[float] | str | None = None,
    features: str | None = "auto",
    num_classes: int | None = None,
    null_class: int | None = None,
    learned_sigma: bool | None = None,
    integer_time: bool | None = None,
    bind: dict[str, Any] | None = None,
    null_bind: dict[str, Any] | None = None,
    network: nn.Module | None = None,
    images: Any = None,
    labels: Tensor | None = None,
    check: bool = True,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Make a denoiser from a network, wherever it comes from.

    Args:
        source: a module or function ``(x, time[, labels]) -> tensor``; a folder or pipeline of diffusers; a run's
            folder or ``mean.safetensors`` of optcov; a file of weights (safetensors, or ``.pt`` without pickled
            objects) for ``network``; or ``"module:name"``.
        shape: shape of one sample, ``(C, H, W)`` or ``(D,)``.
        prediction: what the network predicts: ``eps``, ``x0``, ``v``, ``velocity``, ``score``, ``edm``, or an object.
        schedule: the name of an option of ``schedule``; an object; N betas; a scheduler of diffusers; or two functions
            ``(alpha, sigma)`` of t in [0, 1].
        time: what the network is fed as time at step n of N, ``t = n/N``: ``n``, ``n-1``, ``1000t``, ``999t``, ``t``,
            ``log_snr``, ``edm``, or a function of the level.
        data_range: ``(low, high)`` of the data, numbers or one for each channel; a `DataRange`, such as
            ``DataRange.standardised(mean, std)``; or ``"unbounded"`` for latents.
        features: the name of the module whose input heads read; ``auto`` finds the last feature map; None for heads
            that read the network's input and output.
        num_classes: K, for a network that takes labels.
        null_class: the label that such a network is fed if no class is requested.
        learned_sigma: whether the output has 2C channels, of which the second half is Improved DDPM's variance.
        integer_time: whether the network needs integer times; None to find out by a call.
        bind: keyword arguments of every call, such as text embeddings.
        null_bind: the same for the null condition.
        network: the module to which a file of weights belongs.
        images: a few clean images in the data's range, ``[n, *shape]``, for checking the conventions.  None for smooth
            random images, which reveal only gross mistakes.
        labels: class of each image.
        check: compare the stated conventions with their neighbours, and warn if another convention fits better.
        device: to move the network to; None to leave it where it is.
    Returns:
        The denoiser, in eval mode.
    Raises:
        ValueError: if something is missing, unknown, or does not fit the network; the message is one sentence.
    """
    if isinstance(source, Denoiser):
        return source.eval()
    stated = Conventions(
        None if shape is None else tuple(shape), prediction, schedule, time, data_range, learned_sigma, num_classes
    )
    if isinstance(source, str | Path):
        from optcov.adapter.files import open_source

        source, found = open_source(source, network)
    else:
        if network is not None:
            raise ValueError("network must be left out if the source is a network itself: give one of the two")
        found = Conventions()
    if isinstance(source, Denoiser):
        given = [name for name in ("prediction", "schedule", "time", "data_range") if getattr(stated, name) is not None]
        if given:
            raise ValueError(f"{given[0]} must be left out for a network of optcov, which states it: leave it out")
        return (source if device is None else source.to(device)).eval()
    call, read = from_diffusers(source)
    found = _merged(read, found)
    known = _merged(stated, found)
    if isinstance(call, nn.Module) and isinstance(inner(call), nn.DataParallel | nn.parallel.DistributedDataParallel):
        call = inner(call).module
    if not callable(call):
        raise ValueError(
            f"source must be a network, a function, or the place of one (got {type(source).__name__}): give "
            "(x, time) -> tensor, a folder of diffusers, or a file of weights with network="
        )
    known = _complete(call, known)
    if isinstance(call, nn.Module):
        call.eval()
        if device is not None:
            call.to(device)
    assert known.shape is not None
    path = to_schedule(known.schedule)
    meaning = to_parameterization(known.prediction)
    feed = time_feed(known.time, path)  # type: ignore[arg-type]
    support = _range(known.data_range)
    adapted = call
    if not _is_ours(call):
        options: dict[str, Any] = {
            "num_classes": known.num_classes,
            "null_class": null_class,
            "learned_sigma": bool(known.learned_sigma),
            "bind": bind,
            "null_bind": null_bind,
            "integer_time": bool(known.integer_time if integer_time is None else integer_time),
        }
        adapted = _adapt(call, known.shape, options, path, feed, integer_time, known.learned_sigma, features)
    denoiser = Denoiser(adapted, path, meaning, data_range=support, time=feed).eval()
    if check and adapted is not call:
        from optcov.adapter.check import check_conventions

        check_conventions(denoiser, images, labels)
    return denoiser


def _adapt(
    call: Callable[..., Any],
    shape: tuple[int, ...],
    options: dict[str, Any],
    schedule: NoiseSchedule,
    feed: TimeFeed,
    integer_time: bool | None,
    learned_sigma: bool | None,
    features: str | None,
) -> AdaptedNetwork:
    """Call the network once, to find out how it must be called and what it returns."""
    network = AdaptedNetwork(call, shape, **options)
    device = device_of(network)
    x_t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    level = schedule.levels(torch.full((2,), 0.5, dtype=torch.float64, device=device))
    time = feed(level).float()
    condition = None if network.num_classes is None else torch.zeros(2, dtype=torch.long, device=device)
    for kind in [options["integer_time"]] if integer_time is not None else [options["integer_time"], True]:
        network.integer_time = kind
        try:
            with torch.no_grad():
                answer = network.ask(x_t, time, condition)
            break
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
            reason = error
    else:
        first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
        asked = "(x, time)" if condition is None else "(x, time, labels)"
        raise ValueError(
            f"network must accept {asked} with x of [2, {', '.join(map(str, shape))}] (it failed: {first}): "
            "give its shape, bind its other arguments, or wrap it in a function"
        ) from reason
    channels = shape[0]
    expected = (2, *shape)
    doubled = (2, 2 * channels, *shape[1:])
    if learned_sigma is None and answer.shape == doubled:
        raise ValueError(
            f"learned_sigma must be stated for a network that returns {2 * channels} channels for {channels}: "
            "give learned_sigma=True if the second half is Improved DDPM's variance, or wrap the network"
        )
    wanted = doubled if network.learned_sigma else expected
    if answer.shape != wanted:
        raise ValueError(
            f"network must return [2, {', '.join(map(str, wanted[1:]))}] (got {list(answer.shape)}): give the "
            "shape of its data, or wrap it"
        )
    if not answer.isfinite().all():
        raise ValueError("network must return finite numbers (got NaN or infinity): look at its weights")
    if features == "auto":
        name = find_features(network, x_t, time, condition)
    else:
        name = features
        modules = dict(inner(call).named_modules()) if isinstance(call, nn.Module) else {}
        if name is not None and name not in modules:
            from difflib import get_close_matches

            near = get_close_matches(name, modules, 3) or list(modules)[-3:]
            raise ValueError(
                f"features must name a module of the network (got {name!r}): give one such as {', '.join(near)}, or "
                "None"
            )
    if name is None and network.learned_sigma is False:
        return network
    integer = network.integer_time
    network = AdaptedNetwork(call, shape, **options | {"features": name, "integer_time": integer})
    if name is not None:
        with torch.no_grad():
            network.ask(x_t, time, condition)
        seen = network._seen
        if seen is None or seen.ndim != x_t.ndim or seen.shape[2:] != x_t.shape[2:]:
            raise ValueError(
                f"features = {name} must be a module whose input has the data's height and width (got "
                f"{'none' if seen is None else list(seen.shape)}): name another, or give features=None"
            )
        network.feature_channels = seen.shape[1]
        log.info("heads read the input of %s, %d channels", name, seen.shape[1])
    network.feature_channels += channels if network.learned_sigma else 0
    return network


def _complete(call: Any, known: Conventions) -> Conventions:
    """Complete the conventions.

    Raises:
        ValueError: if a required convention is missing; the message names it and its possible values.
    """
    if known.shape is None and hasattr(call, "data_shape"):
        known = replace(known, shape=tuple(call.data_shape))
    missing = [name for name in ("shape", "prediction", "schedule", "time") if getattr(known, name) is None]
    if missing:
        say = {
            "shape": "shape=(C, H, W)",
            "prediction": 'prediction="eps", "x0", "v", "velocity", "score" or "edm"',
            "schedule": 'schedule="linear", "cosine", N betas or another',
            "time": 'time="n", "n-1", "1000t", "999t", "t", "log_snr" or "edm"',
        }
        raise ValueError(
            f"{' and '.join(missing)} must be stated, because the source does not state it: give "
            f"{', '.join(say[name] for name in missing)}"
        )
    if known.data_range is None:
        warnings.warn("data_range was not stated: assuming that the data lie in [-1, 1]", stacklevel=3)
        known = replace(known, data_range=(-1.0, 1.0))
    return known


def _merged(first: Conventions, then: Conventions) -> Conventions:
    """Merge conventions; ``then`` applies where ``first`` states nothing."""
    return Conventions(
        **{
            name: getattr(then, name) if getattr(first, name) in (None, False) else getattr(first, name)
            for name in ("learned_sigma", "num_classes", "integer_time")
        },
        **{
            name: getattr(then, name) if getattr(first, name) is None else getattr(first, name)
            for name in ("shape", "prediction", "schedule", "time", "data_range")
        },
    )


def _is_ours(network: Any) -> bool:
    """Whether a network has the attributes and outputs that a denoiser requires."""
    return hasattr(network, "data_shape") and hasattr(network, "feature_channels")


def from_diffusers(source: Any) -> tuple[Any, Conventions]:
    """The network in an object of diffusers, and what its configs state; any other object is returned unchanged."""
    if not type(source).__module__.startswith(("diffusers.", "transformers.")) and not hasattr(source, "scheduler"):
        return source, Conventions()
    from optcov.adapter.diffusers import of_object

    return of_object(source)


def to_parameterization(prediction: Any) -> Parameterization:
    if isinstance(prediction, Parameterization):
        return prediction
    if isinstance(prediction, type) and issubclass(prediction, Parameterization):
        return prediction()
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"prediction must be one of eps, x0, v, velocity, score, edm, or a parameterization (got {prediction!r}): "
            "say what the network predicts"
        )
    return PREDICTIONS[prediction]()


def _range(data_range: Any) -> DataRange:
    if isinstance(data_range, DataRange):
        return data_range
    if isinstance(data_range, str):
        if data_range != "unbounded":
            raise ValueError(f'data_range must be (low, high), a DataRange or "unbounded" (got {data_range!r})')
        return DataRange(None, None, None)
    ends = tuple(data_range)
    if len(ends) != 2:
        raise ValueError(f"data_range must be two ends, (low, high) (got {ends}): give such as (-1, 1) or (0, 1)")
    return DataRange(*ends)


def to_schedule(schedule: Any) -> NoiseSchedule:
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if isinstance(schedule, str):
        made = make("schedule", schedule)
        assert isinstance(made, NoiseSchedule)
        return made
    if hasattr(schedule, "config") and type(schedule).__module__.startswith("diffusers."):
        from optcov.adapter.diffusers import schedule_of

        return schedule_of(dict(schedule.config))
    if isinstance(schedule, tuple | list) and len(schedule) == 2 and all(callable(each) for each in schedule):
        return FunctionSchedule(*schedule)
    try:
        betas = torch.as_tensor(schedule, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"schedule must be a name, N betas, two functions (alpha, sigma), or a schedule (got "
            f"{type(schedule).__name__}): say how signal and noise change with time"
        ) from error
    return BetaSchedule(betas)
