"""``optcov.load`` makes a denoiser from any network; conventions are stated by the user or read, never guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optcov.adapter.conventions import Conventions
from optcov.adapter.network import inner
from optcov.adapter.probe import adapt
from optcov.adapter.time import TimeFeed, time_feed
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.parameterization import EDM, X0, Eps, Parameterization, Score, V, Velocity
from optcov.registry import make
from optcov.schedule import BetaSchedule, FunctionSchedule, NoiseSchedule
from optcov.wording import first_line

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
        None if shape is None else _shape(shape),
        prediction,
        schedule,
        time,
        data_range,
        learned_sigma,
        num_classes,
        null_class,
    )
    device = None if device is None else _device(device)
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
    call = _module_of(call)
    if isinstance(call, nn.Module) and isinstance(inner(call), nn.DataParallel | nn.parallel.DistributedDataParallel):
        call = inner(call).module
    if not callable(call) or (isinstance(call, type) and issubclass(call, nn.Module)):
        got = f"the class {call.__name__}" if isinstance(call, type) else type(source).__name__
        raise ValueError(
            f"source must be a network, a function, or the place of one (got {got}): give "
            "(x, time) -> tensor, a folder of diffusers, or a file of weights with network="
        )
    known = _complete(call, known)
    if isinstance(call, nn.Module):
        try:
            call.eval()
        except NotImplementedError as error:  # what torch.export makes
            raise ValueError(
                f"source must be a network that has eval() (it failed: {first_line(error)}): give a function (x, time) "
                "that calls it"
            ) from error
        if device is not None:
            call.to(device)
    assert known.shape is not None
    path = to_schedule(known.schedule)
    meaning = to_parameterization(known.prediction)
    feed = time_feed(known.time, path)  # type: ignore[arg-type]
    support = _range(known.data_range)
    _check_channels(support, known.shape)
    adapted = call
    if null_bind and not null_bind.keys() <= (bind or {}).keys():
        raise ValueError(
            f"null_bind must name what bind does (got {', '.join(sorted(null_bind))} and "
            f"{', '.join(sorted(bind or {})) or 'nothing'}): give both"
        )
    if bind is not None and not isinstance(bind, dict):
        raise ValueError(
            f"bind must be a dictionary of arguments (got {type(bind).__name__}): give such as {{'text': x}}"
        )
    if known.num_classes is not None and not (isinstance(known.num_classes, int) and known.num_classes >= 1):
        raise ValueError(f"num_classes must be a whole number of at least 1 (got {known.num_classes!r}): give K")
    if known.null_class is not None and known.num_classes is None:
        raise ValueError(f"num_classes must be given with null_class (got {known.null_class} alone): give both")
    if not _is_ours(call):
        options: dict[str, Any] = {
            "num_classes": known.num_classes,
            "null_class": known.null_class,
            "learned_sigma": bool(known.learned_sigma),
            "bind": bind,
            "null_bind": null_bind,
            "integer_time": bool(known.integer_time if integer_time is None else integer_time),
        }
        adapted = adapt(
            call,
            known.shape,
            options,
            path,
            feed,
            integer_time=integer_time,
            learned_sigma=known.learned_sigma,
            features=features,
            device=device,
        )
    denoiser = Denoiser(adapted, path, meaning, data_range=support, time=feed).eval()
    if check and adapted is not call:
        from optcov.adapter.check import check_conventions

        check_conventions(denoiser, images, labels)
    return denoiser


def _module_of(call: Any) -> Any:
    """The module whose ``forward`` a call is; the module of another method, or of a partial, is put to eval mode."""
    owner = call.func if isinstance(call, partial) else getattr(call, "__self__", None)
    owner = getattr(owner, "__self__", owner)
    if isinstance(owner, nn.Module):
        owner.eval()
        if getattr(call, "__func__", None) is type(owner).forward:
            return owner
    return call


def _shape(shape: Any) -> tuple[int, ...]:
    """The shape of a sample as integers."""
    try:
        sizes = tuple(shape)
    except TypeError:
        sizes = ()
    if not sizes or any(isinstance(each, str) or not each >= 1 or each % 1 != 0 for each in sizes):
        raise ValueError(f"shape must be positive integers, of one sample (got {shape!r}): give (C, H, W) or (D,)")
    return tuple(int(each) for each in sizes)


def _device(device: Any) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"device must be one that PyTorch has here (got {device!r}: {first_line(error)}): give such as cpu"
        ) from error


def _check_channels(data_range: DataRange, shape: tuple[int, ...]) -> None:
    counts = {len(end) for end in (data_range.low, data_range.high) if isinstance(end, tuple)} - {1}
    if counts - {shape[0]}:
        raise ValueError(
            f"data_range must have an end for each of the {shape[0]} channels (got {counts.pop()}): give one mean and "
            "std for each, or one for all"
        )


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
            "shape": "shape=(C, H, W), (C, L) of sequences, or (C, frames, H, W) of videos",
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
        null_class=then.null_class if first.null_class is None and first.num_classes is None else first.null_class,
    )


def _is_ours(network: Any) -> bool:
    """Whether a network has the attributes and outputs that a denoiser requires."""
    return hasattr(network, "data_shape") and hasattr(network, "feature_channels")


def from_diffusers(source: Any) -> tuple[Any, Conventions]:
    """The network in an object of diffusers, and what its configs state; any other object is returned unchanged."""
    kind = type(getattr(source, "_orig_mod", source)).__module__  # of a compiled one
    if not kind.startswith(("diffusers.", "transformers.")) and not hasattr(source, "scheduler"):
        return source, Conventions()
    from optcov.adapter.diffusers import of_object

    return of_object(source)


def to_parameterization(prediction: Any) -> Parameterization:
    if isinstance(prediction, Parameterization):
        return prediction
    if isinstance(prediction, type) and issubclass(prediction, Parameterization):
        return prediction()
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
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
    try:
        ends = tuple(data_range.tolist() if hasattr(data_range, "tolist") else data_range)
        made = DataRange(*ends) if len(ends) == 2 and not any(isinstance(end, str) for end in ends) else None
    except TypeError:
        made = None
    if made is None:
        raise ValueError(f"data_range must be two ends, (low, high) (got {data_range}): give such as (-1, 1) or (0, 1)")
    return made


def to_schedule(schedule: Any) -> NoiseSchedule:
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if isinstance(schedule, str):
        made = make("schedule", schedule)
        assert isinstance(made, NoiseSchedule)
        return made
    if hasattr(schedule, "config") and type(schedule).__module__.startswith("diffusers."):
        from optcov.adapter.diffusers_schedule import schedule_of

        return schedule_of(dict(schedule.config) | {"_class_name": type(schedule).__name__})
    if isinstance(schedule, tuple | list) and len(schedule) == 2 and all(callable(each) for each in schedule):
        return FunctionSchedule(*schedule)
    try:
        betas = torch.as_tensor(schedule, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"schedule must be a name, N betas, two functions (alpha, sigma), or a schedule (got "
            f"{type(schedule).__name__}): say how signal and noise change with time"
        ) from error
    if betas.ndim == 1 and len(betas) > 1 and bool((betas.diff() < 0).all()) and float(betas[0]) > 0.5:
        raise ValueError(
            f"schedule must be betas, which grow from about 1e-4 (got {float(betas[0]):.4g} falling to "
            f"{float(betas[-1]):.4g}, as products of alphas do): give 1 - alphas_cumprod[n] / alphas_cumprod[n - 1]"
        )
    if (
        betas.ndim == 1
        and len(betas) > 9
        and bool((betas.diff() >= 0).all())
        and 0.3 < float(betas.mean()) < float(betas[-1]) < 1
    ):
        raise ValueError(
            f"schedule must be betas, of which few are near 1 (got {float(betas.mean()):.2g} on average, as of "
            "1 - alphas_cumprod): give 1 - alphas_cumprod[n] / alphas_cumprod[n - 1]"
        )
    return BetaSchedule(betas)
